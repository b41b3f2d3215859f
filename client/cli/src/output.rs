//! Where output goes: results to stdout; with `--json` the last line of stdout is one JSON value and everything for people goes to
//! stderr.

use std::fmt::Display;
use std::io::Write;

use serde_json::Value;

use crate::table::Table;

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// A program reads stdout.
    pub json: bool,
}

impl Output {
    /// The result for a program, on the last line.
    pub fn object(self, value: Value) {
        print(&value);
    }
    /// A line for people.
    pub fn say(self, line: impl Display) {
        if self.json { eprintln!("{line}") } else { print(&line) }
    }
    /// A table, or what is said instead of an empty one.
    pub fn table(self, table: &Table, empty: &str) {
        if !table.is_empty() {
            self.say(table.to_string().trim_end());
        } else if !empty.is_empty() {
            eprintln!("{empty}");
        }
    }
}

/// One line to stdout. A reader that has gone away (`| head`) ends the program quietly, as it ends other tools.
pub fn print(line: &impl Display) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        drop(stdout);
        gone(&error);
    }
}

/// Ends the program because stdout cannot be written: silently for a closed pipe.
pub fn gone(error: &std::io::Error) -> ! {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    eprintln!("catena: stdout: {}", crate::exit::os_text(error));
    std::process::exit(1);
}
