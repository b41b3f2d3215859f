//! Inodes on the screen and as JSON.

use catena_client::{FileType, Stat};
use catena_proto::layout::Layout;
use serde_json::{Value, json};

use crate::cmd::fs::mode::{letters, type_name};
use crate::cmd::fs::path::show;
use crate::cmd::fs::users::Names;
use crate::table::Table;
use crate::units;

/// A size, exact or for people.
pub fn size(bytes: u64, exact: bool) -> String {
    if exact { bytes.to_string() } else { units::size(bytes) }
}

/// An inode as JSON. Times are nanoseconds since the epoch, the mode is octal text.
pub fn json(path: &str, inode: &Stat) -> Value {
    let mut value = json!({
        "path": path, "inode": inode.inode.0, "type": type_name(inode.kind), "mode": format!("{:04o}", inode.mode),
        "uid": inode.uid, "gid": inode.gid, "nlink": inode.nlink, "length": inode.length,
        "atime": inode.atime.0, "mtime": inode.mtime.0, "ctime": inode.ctime.0, "btime": inode.btime.0,
    });
    if let Some(layout) = &inode.layout {
        value["layout"] = json!({
            "table": layout.table.0, "table_version": layout.table_version, "chunk_size": layout.chunk_size,
            "stripe": layout.stripe, "seed": layout.seed,
        });
    }
    if inode.kind == FileType::Symlink {
        value["target"] = show(&inode.symlink).into();
    }
    value
}

/// Rows of `ls -l`.
pub struct Long {
    users: Names,
    groups: Names,
    exact: bool,
    inodes: bool,
    table: Table,
}

impl Long {
    /// No rows yet.
    pub fn new(exact: bool, inodes: bool) -> Long {
        Long { users: Names::users(), groups: Names::groups(), exact, inodes, table: Long::table() }
    }

    fn table() -> Table {
        Table::new(&[">", "", ">", "", "", ">", "", ""])
    }

    /// Adds a row; `name` is ready for the screen.
    pub fn row(&mut self, name: &str, inode: &Stat) {
        let kind = inode.kind;
        let name = match kind {
            FileType::Symlink => format!("{name} -> {}", show(&inode.symlink)),
            _ => name.to_owned(),
        };
        let length = match kind {
            FileType::CharDevice | FileType::BlockDevice => {
                format!("{}, {}", rustix::fs::major(inode.rdev), rustix::fs::minor(inode.rdev))
            }
            FileType::Directory => "-".into(),
            _ => size(inode.length, self.exact),
        };
        self.table.row([
            if self.inodes { inode.inode.0.to_string() } else { String::new() },
            letters(kind, inode.mode),
            inode.nlink.to_string(),
            self.users.name(inode.uid),
            self.groups.name(inode.gid),
            length,
            units::date(inode.mtime.0)[..16].to_owned(),
            name,
        ]);
    }

    /// The rows so far, as text without the last line's end.
    pub fn take(&mut self) -> String {
        let text = std::mem::replace(&mut self.table, Long::table()).to_string();
        if self.inodes {
            return text.trim_end().to_owned();
        }
        // The column of inode numbers is empty: without it lines begin two spaces further left.
        text.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }
}

/// The lines of `catena fs stat`.
pub fn details(path: &str, inode: &Stat) -> String {
    let (users, groups) = (Names::users(), Names::groups());
    let kind = inode.kind;
    let mut table = Table::new(&[">", ""]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    let link =
        if kind == FileType::Symlink { format!(" -> {}", show(&inode.symlink)) } else { String::new() };
    row("path", format!("{path}{link}"));
    row("type", type_name(kind).into());
    row("inode", inode.inode.0.to_string());
    if kind == FileType::File || kind == FileType::Symlink {
        row("length", format!("{} ({})", inode.length, units::size(inode.length)));
    }
    row("mode", format!("{:04o} {}", inode.mode, letters(kind, inode.mode)));
    row(
        "owner",
        format!("{}:{} ({}:{})", inode.uid, inode.gid, users.name(inode.uid), groups.name(inode.gid)),
    );
    row("links", inode.nlink.to_string());
    let times = [
        ("access", inode.atime.0),
        ("modify", inode.mtime.0),
        ("change", inode.ctime.0),
        ("birth", inode.btime.0),
    ];
    for (what, time) in times {
        row(what, format!("{}.{:09} UTC", units::date(time), time.rem_euclid(1_000_000_000)));
    }
    if let Some(layout) = &inode.layout {
        row("layout", layout_line(layout));
    }
    table.to_string()
}

/// A layout in one line.
pub fn layout_line(layout: &Layout) -> String {
    format!(
        "chain table {} version {}, chunks of {}, stripe of {} chains",
        layout.table.0,
        layout.table_version,
        units::size(u64::from(layout.chunk_size)),
        layout.stripe
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_row_reads_like_ls() {
        let mut long = Long {
            users: Names::none(),
            groups: Names::none(),
            exact: false,
            inodes: false,
            table: Long::table(),
        };
        use catena_proto::pb;
        let wire = pb::Inode {
            r#type: pb::FileType::File as i32,
            mode: 0o644,
            nlink: 1,
            length: 2048,
            ..Default::default()
        };
        long.row("a", &Stat::from(wire.clone()));
        long.row("b", &Stat::from(pb::Inode { length: 1 << 30, nlink: 12, ..wire }));
        let text = long.take();
        assert_eq!(
            text,
            "-rw-r--r--   1  0  0  2 KiB  1970-01-01 00:00  a\n-rw-r--r--  12  0  0  1 GiB  1970-01-01 00:00  b"
        );
    }
}
