"""What training minimises; `build` names the losses."""
