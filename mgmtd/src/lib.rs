//! The cluster manager: who is there, which chains exist, in which state every target is.

pub mod chain;
#[cfg(test)]
mod testing;
