//! `catena config`: examples and checks.
