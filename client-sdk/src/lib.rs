//! Client SDK of keypool.
