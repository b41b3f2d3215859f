//! Snapshots of text in `testdata/`: the expected output stands in a file that people read and review.

use std::path::Path;

/// Compares `text` with `testdata/<name>`. With `UPDATE_SNAPSHOTS=1` in the environment the file is written instead.
pub fn snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).expect("testdata is writable");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == text, "{} differs; expected:\n{expected}\ngot:\n{text}", path.display());
}
