//! The primary's decisions, with services that behave as Catena's do and a clock that the test moves.

mod failures;
mod recover;
mod refusals;
mod world;
