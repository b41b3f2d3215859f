//! The records and constants of `infiniband/verbs.h` (rdma-core) that we use, by hand: bindings made by a generator would need libclang and
//! the header wherever this is built. A test compiles the header, where there is one, and compares every size, offset and value.
//!
//! Names are the header's. A field that we do not touch is there for its place only and says so by its type.

#![allow(non_camel_case_types, missing_docs)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the records are those of machines with 64 bits");

pub mod context;
pub mod queue;
pub mod work;

pub use context::*;
pub use queue::*;
pub use work::*;

/// A function pointer that we never call.
pub type Unused = *const std::ffi::c_void;
/// Something of the library's that we never look into.
pub type Opaque = *mut std::ffi::c_void;

/// What the test compares of a record.
#[cfg(test)]
#[derive(Debug)]
pub struct Record {
    pub name: &'static str,
    pub size: usize,
    pub align: usize,
    pub fields: &'static [Field],
}

/// And of a field: its C expression, where it is, how long.
#[cfg(test)]
#[derive(Debug)]
pub struct Field {
    pub path: &'static str,
    pub offset: usize,
    pub size: usize,
    /// Several of C's fields in one: only its place is compared.
    pub group: bool,
}

#[cfg(test)]
macro_rules! path_of {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $path:literal) => {
        $path
    };
}
#[cfg(test)]
use path_of;

/// Declares C records, and for the test what they look like. A field may give its path in C where that is another than its name.
macro_rules! records {
    ($($(#[$meta:meta])* $name:ident { $($field:ident $(= $path:literal)?: $type:ty,)* })*) => {
        $($(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct $name {
            $(pub $field: $type,)*
        }

        impl $name {
            /// All zero.
            pub fn zeroed() -> $name {
                // SAFETY: numbers, arrays of them, raw pointers and optional functions: all of them may be zero.
                unsafe { std::mem::zeroed() }
            }
        })*

        #[cfg(test)]
        pub const RECORDS: &[$crate::ibv::sys::Record] = &[$($crate::ibv::sys::Record {
            name: stringify!($name),
            size: size_of::<$name>(),
            align: align_of::<$name>(),
            fields: &[$($crate::ibv::sys::Field {
                path: $crate::ibv::sys::path_of!($field $($path)?),
                offset: std::mem::offset_of!($name, $field),
                size: size_of::<$type>(),
                group: matches!(stringify!($type).as_bytes(), [b'[', b'U', b'n', b'u', ..]),
            },)*],
        },)*];
    };
}
pub(crate) use records;

/// Declares constants, and for the test their names and values.
macro_rules! constants {
    ($($name:ident: $type:ty = $value:expr;)*) => {
        $(pub const $name: $type = $value;)*

        #[cfg(test)]
        pub const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), $name as u64),)*];
    };
}
pub(crate) use constants;
