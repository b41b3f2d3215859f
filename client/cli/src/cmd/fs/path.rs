//! Paths in the cluster: absolute, bytes.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use catena_client::{AsPlace, Place};

use crate::exit::{Failure, Result};

/// An absolute path in the cluster, without a trailing slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    bytes: Vec<u8>,
    /// It was written with a trailing slash: it must be a directory.
    pub slash: bool,
}

impl Remote {
    /// From the command line.
    pub fn new(path: &Path) -> Result<Remote> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.first() != Some(&b'/') {
            let shown = path.display();
            let hint = format!("paths in the cluster start at its root: /{shown}");
            return Err(Failure::usage(format!("{shown}: not an absolute path")).hint(hint));
        }
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(1, |last| last + 1);
        Ok(Remote { bytes: bytes[..end].to_vec(), slash: end < bytes.len() || bytes.len() == 1 })
    }

    /// An entry of this directory.
    pub fn join(&self, name: &[u8]) -> Remote {
        let mut bytes = self.bytes.clone();
        if bytes != b"/" {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Remote { bytes, slash: false }
    }

    /// The last component; none of the root.
    pub fn name(&self) -> Option<&[u8]> {
        let slash = self.bytes.iter().rposition(|byte| *byte == b'/')?;
        Some(&self.bytes[slash + 1..]).filter(|name| !name.is_empty())
    }

    /// The directory that it is in; the root is in itself.
    pub fn parent(&self) -> Remote {
        let slash = self.bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Remote { bytes: self.bytes[..slash.max(1)].to_vec(), slash: true }
    }
}

impl AsPlace for Remote {
    fn as_place(&self) -> Place {
        Place::path(&self.bytes)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.bytes))
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A name for a terminal: what is not text or would move the cursor is escaped.
pub fn show(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text
}

/// A name for the local file system.
pub fn local_name(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> Remote {
        Remote::new(Path::new(text)).unwrap()
    }

    #[test]
    fn paths_are_taken_apart_and_put_together() {
        assert_eq!(remote("/a/b").name(), Some(&b"b"[..]));
        assert_eq!(remote("/a/b/").parent(), remote("/a/"));
        assert_eq!(remote("/a").parent().to_string(), "/");
        assert_eq!(remote("/").name(), None);
        assert_eq!(remote("/").join(b"x").to_string(), "/x");
        assert_eq!(remote("/a//").join(b"x").to_string(), "/a/x");
        assert!(remote("/a/").slash && remote("/").slash && !remote("/a").slash);
        assert!(Remote::new(Path::new("a/b")).unwrap_err().hint.unwrap().ends_with("/a/b"));
    }

    #[test]
    fn names_cannot_play_with_the_terminal() {
        assert_eq!(show(b"a\x1b[2Jb\xffc\n"), "a\\u{1b}[2Jb\\xffc\\n");
        assert_eq!(show("höhe".as_bytes()), "höhe");
    }
}
