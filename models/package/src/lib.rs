//! Model packages: manifest, digests, reading and checking.
