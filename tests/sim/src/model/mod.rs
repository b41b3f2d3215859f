//! What a correct system may answer: sequential models, and the search for an order of a concurrent history that one of them explains.

pub mod chunk;
pub mod directory;
pub mod linear;
