//! The kit of which the backends within one process are built.
