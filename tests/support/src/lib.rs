//! What keypool's own tests share.
