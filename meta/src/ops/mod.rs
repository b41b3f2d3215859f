//! The operations, one a file. Each is a function of a transaction and a request.
//!
//! Which operation touches which time (POSIX): creation sets all of the new inode's and the directory's mtime and ctime; removal and
//! rename set the directory's mtime and ctime and the inode's ctime; writes and cuts set mtime and ctime; changes of attributes,
//! extended attributes and link counts set ctime. Reading touches nothing: atime changes only by `set_attr`, as on a file system
//! mounted `noatime`, because a write for every read would make readers conflict.

mod batch_stat;
mod check;
mod link;
mod make;
mod mkdir;
mod mknod;
pub(crate) mod open;
mod period;
mod readdir;
mod readlink;
mod remove;
mod rename;
pub(crate) mod repair;
mod set_attr;
mod set_layout;
mod stat;
mod statfs;
mod symlink;
pub(crate) mod sync;
pub(crate) mod truncate;
pub(crate) mod unlink;
mod usage;
mod xattr;
