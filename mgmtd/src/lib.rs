//! The cluster manager: who is there, which chains exist, in which state every target is.

pub mod chain;
pub mod placement;
#[cfg(test)]
mod testing;
