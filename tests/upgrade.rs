//! Releases follow each other without a lost call: the schema grows beside replicas that serve.

mod lint;
