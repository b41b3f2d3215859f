//! What only this backend does.
