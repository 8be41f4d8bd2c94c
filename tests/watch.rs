//! Owners hear how their pools stand, whichever replica serves whom, and are told when to refill.

mod crossing;
mod idle;
mod limits;
mod outages;
mod pushes;
mod quiet;
mod refill;
