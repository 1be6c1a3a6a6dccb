"""What each network is and keeps, without torch: a file for each, named as in `nnseg.networks`.

Each file counts its activations by a function and defines a `NetworkKind` for each network of it;
`nnseg.model.kinds` knows them by name.
"""
