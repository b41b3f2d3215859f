//! Permission bits: `chmod`'s language in, `ls -l`'s ten letters out.

use catena_client::FileType;

use crate::args::fs::parse_mode;

/// A change of permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// Exactly these bits.
    Octal(u32),
    /// `u+x,go-w`: applied in order.
    Symbolic(Vec<Clause>),
}

/// One clause of a symbolic mode, such as `go-w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The bits of the classes that it is about: 0o4700, 0o2070, 0o1007 or several.
    who: u32,
    action: u8,
    bits: u32,
    /// `X`: execute only where it is a directory or somebody may execute already.
    conditional: bool,
    /// `u=g`: bits copied from this class.
    copy: Option<u8>,
}

impl ModeChange {
    /// Reads `640`, `u+rwX,go-w`, `a=r`, `+x`, `g=u`, `+t`.
    pub fn parse(text: &str) -> Result<ModeChange, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return parse_mode(text).map(ModeChange::Octal);
        }
        text.split(',').map(clause).collect::<Option<Vec<_>>>().filter(|_| !text.is_empty()).map_or_else(
            || Err(format!("`{text}` is not a mode; write it like 640, u+x or go-w")),
            |clauses| Ok(ModeChange::Symbolic(clauses)),
        )
    }

    /// The bits of a file that has `mode` now.
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        match self {
            ModeChange::Octal(bits) => *bits,
            ModeChange::Symbolic(clauses) => {
                clauses.iter().fold(mode & 0o7777, |mode, clause| clause.apply(mode, directory))
            }
        }
    }
}

fn clause(text: &str) -> Option<Clause> {
    let split = text.find(['+', '-', '='])?;
    let (who, rest) = text.split_at(split);
    let mut mask = 0;
    for class in who.bytes() {
        mask |= match class {
            b'u' => 0o4700,
            b'g' => 0o2070,
            b'o' => 0o1007,
            b'a' => 0o7777,
            _ => return None,
        };
    }
    let who = if mask == 0 { 0o7777 } else { mask };
    let (action, letters) = (rest.as_bytes()[0], &rest[1..]);
    let mut clause = Clause { who, action, bits: 0, conditional: false, copy: None };
    match letters.as_bytes() {
        [class @ (b'u' | b'g' | b'o')] => clause.copy = Some(*class),
        letters => {
            for letter in letters {
                clause.bits |= match letter {
                    b'r' => 0o444,
                    b'w' => 0o222,
                    b'x' => 0o111,
                    b's' => 0o6000,
                    b't' => 0o1000,
                    b'X' => {
                        clause.conditional = true;
                        0
                    }
                    _ => return None,
                };
            }
        }
    }
    Some(clause)
}

impl Clause {
    fn apply(&self, mode: u32, directory: bool) -> u32 {
        let mut bits = self.bits;
        if self.conditional && (directory || mode & 0o111 != 0) {
            bits |= 0o111;
        }
        if let Some(class) = self.copy {
            let shift = match class {
                b'u' => 6,
                b'g' => 3,
                _ => 0,
            };
            bits = (mode >> shift & 7) * 0o111;
        }
        // The sticky bit is nobody's class: `+t` and `a+t` mean it, and so does `u=` leave it alone.
        let sticky = bits & 0o1000;
        let bits = (bits & self.who) | sticky;
        match self.action {
            b'+' => mode | bits,
            b'-' => mode & !bits,
            _ => (mode & !(self.who & 0o6777)) | bits,
        }
    }
}

/// `drwxr-sr-t`.
pub fn letters(kind: FileType, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::File => '-',
    });
    for (shift, special, set) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => set,
            (false, true) => set.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// What a type is called.
pub fn type_name(kind: FileType) -> &'static str {
    match kind {
        FileType::File => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_chmod_changes_them() {
        for (change, before, directory, after) in [
            ("640", 0o777, false, 0o640),
            ("2775", 0, true, 0o2775),
            ("u+x", 0o644, false, 0o744),
            ("go-w", 0o666, false, 0o644),
            ("a=r", 0o777, false, 0o444),
            ("+x", 0o644, false, 0o755),
            ("u+rwX,go-w", 0o622, false, 0o600),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o744, false, 0o755),
            ("a+X", 0o644, true, 0o755),
            ("g=u", 0o740, false, 0o770),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+t", 0o777, true, 0o1777),
            ("o=", 0o777, false, 0o770),
        ] {
            let got = ModeChange::parse(change).unwrap().apply(before, directory);
            assert_eq!(got, after, "{change} on {before:o}: {got:o}");
        }
        for text in ["", "999", "u", "z+x", "u+q", "77777", "u+x,"] {
            assert!(ModeChange::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        assert_eq!(letters(FileType::File, 0o644), "-rw-r--r--");
        assert_eq!(letters(FileType::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(letters(FileType::File, 0o4744), "-rwsr--r--");
        assert_eq!(letters(FileType::File, 0o2640), "-rw-r-S---");
    }
}
