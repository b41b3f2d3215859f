//! What the tests of the embedded store share.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// In memory where there is such a place: no test needs the disk itself, and a shared one can be slow.
pub fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// A copy of a directory: of an open store, what a crash at this moment would leave.
pub fn copy(from: &Path) -> TempDir {
    fn files(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("mkdir");
        for entry in fs::read_dir(from).expect("readdir") {
            let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).expect("readdir");
            match path.is_dir() {
                true => files(&path, &to.join(name)),
                false => _ = fs::copy(&path, to.join(name)).expect("copy"),
            }
        }
    }
    let to = directory();
    files(from, to.path());
    to
}
