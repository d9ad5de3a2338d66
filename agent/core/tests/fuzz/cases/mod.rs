//! What is done with the bytes of a case. It panics where something is not as it has to be.

mod bytes;
pub mod decode;
mod disk;
pub mod driver;
mod facts;
mod lies;
