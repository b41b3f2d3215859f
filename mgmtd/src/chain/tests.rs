//! Chain transitions: scenarios as text, every reachable state of three targets, and random histories of more.

mod histories;
mod scenarios;
