//! What a correct system may answer: sequential models, the search for an order of a concurrent history that one of them explains, and
//! the namespace's clients whose history it is. For the simulator, which has its own time, and for real processes: hence a crate apart,
//! which has nothing of the simulator in it.

pub mod chunk;
pub mod directory;
pub mod linear;
pub mod names;
