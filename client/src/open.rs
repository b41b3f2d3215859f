//! Opening and creating files.

use std::sync::Arc;

use catena_meta_client::{OpenFlags, Place};
use catena_proto::layout::Layout;
use catena_proto::status::Status;

use crate::attributes::{AsPlace, LayoutChoice, Stat};
use crate::connect::Catena;
use crate::error::{Error, Result};
use crate::file::File;
use crate::length::Length;
use crate::metrics::add;

/// How a file is opened; modelled on [`std::fs::OpenOptions`].
///
/// ```no_run
/// # async fn example(catena: catena_client::Catena) -> catena_client::Result<()> {
/// use catena_client::{LayoutChoice, OpenOptions};
/// let big_chunks = LayoutChoice { chunk_size: Some(4 << 20), ..LayoutChoice::default() };
/// let file = OpenOptions::new().write(true).create_new(true).layout(big_chunks).open(&catena, "/model.bin").await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub(crate) flags: OpenFlags,
    pub(crate) append: bool,
    mode: u32,
    layout: LayoutChoice,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions::new()
    }
}

impl OpenOptions {
    /// Nothing set: at least one of read, write and append is needed.
    pub fn new() -> OpenOptions {
        let (flags, layout) = (OpenFlags::default(), LayoutChoice::default());
        OpenOptions { flags, append: false, mode: 0o666, layout }
    }
    /// For reading.
    pub fn read(mut self, yes: bool) -> OpenOptions {
        self.flags.read = yes;
        self
    }
    /// For writing.
    pub fn write(mut self, yes: bool) -> OpenOptions {
        self.flags.write = yes;
        self
    }
    /// For writing with [`File::append`] alone: `write_at` is refused.
    pub fn append(mut self, yes: bool) -> OpenOptions {
        self.append = yes;
        self
    }
    /// Make the file if it is missing. Needs `write` or `append`.
    pub fn create(mut self, yes: bool) -> OpenOptions {
        self.flags.create = yes;
        self
    }
    /// Make the file; fail if the name is taken.
    pub fn create_new(mut self, yes: bool) -> OpenOptions {
        self.flags.exclusive = yes;
        self
    }
    /// Cut to length 0. Needs `write`.
    pub fn truncate(mut self, yes: bool) -> OpenOptions {
        self.flags.truncate = yes;
        self
    }
    /// Do not follow a symbolic link in the last component.
    pub fn no_follow(mut self, yes: bool) -> OpenOptions {
        self.flags.no_follow = yes;
        self
    }
    /// Permission bits of a created file, before the umask. Default 0o666.
    pub fn mode(mut self, mode: u32) -> OpenOptions {
        self.mode = mode;
        self
    }
    /// Layout of a created file; what is not chosen is inherited from its directory.
    pub fn layout(mut self, layout: LayoutChoice) -> OpenOptions {
        self.layout = layout;
        self
    }

    /// Opens the file.
    pub async fn open(&self, catena: &Catena, at: impl AsPlace) -> Result<File> {
        catena.open_place(at.as_place(), self).await
    }
}

impl Catena {
    /// Opens a file for reading.
    pub async fn open(&self, at: impl AsPlace) -> Result<File> {
        OpenOptions::new().read(true).open(self, at).await
    }

    /// Makes a file, or cuts the one that is there to length 0, for reading and writing.
    pub async fn create(&self, at: impl AsPlace) -> Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self, at).await
    }

    /// All of a file, which must fit in memory.
    pub async fn read(&self, at: impl AsPlace) -> Result<Vec<u8>> {
        let file = self.open(at).await?;
        let length = usize::try_from(file.known_len()).unwrap_or(usize::MAX);
        let mut contents = Vec::new();
        if contents.try_reserve_exact(length).is_err() {
            return Err(file.error("read", Status::TooLarge, "the file does not fit in memory"));
        }
        contents.resize(length, 0);
        let read = file.read_at(0, &mut contents).await?;
        contents.truncate(read);
        Ok(contents)
    }

    /// Makes a file with these contents, replacing those of one that is there.
    pub async fn write(&self, at: impl AsPlace, contents: &[u8]) -> Result<()> {
        let file = self.create(at).await?;
        file.write_at(0, contents).await?;
        file.close().await
    }

    async fn open_place(&self, place: Place, options: &OpenOptions) -> Result<File> {
        let path = place.to_string();
        let mut flags = options.flags;
        flags.write |= options.append;
        flags.create |= flags.exclusive;
        let refuse = |what: &str| Err(Error::new("open", &*path, Status::Invalid, what));
        if !flags.read && !flags.write {
            return refuse("choose at least one of read, write and append");
        }
        if !flags.write && (flags.create || flags.truncate) {
            return refuse("creating and cutting need write access: add write(true)");
        }
        if options.append && flags.truncate {
            return refuse("append and truncate exclude each other");
        }
        let mode = options.mode & !self.shared.umask;
        let layout = options.layout.to_pb();
        let open = self.shared.meta.open(&self.who, &place, flags, mode, layout).await?;
        add(&self.shared.metrics.opens, 1);
        let stat = Stat::from(open.inode);
        // From here on the file owns its session: whatever fails, dropping it ends the session.
        let length = Length::of(self, &stat);
        let file = File::new(self.clone(), path, &stat, length, &flags, options.append, open.session);
        match stat.kind {
            crate::FileType::File => {}
            crate::FileType::Directory => return Err(file.error("open", Status::IsDirectory, "")),
            _ => {
                let what = "only regular files have contents here; open special files through a mount";
                return Err(file.error("open", Status::Unsupported, what));
            }
        }
        let Some(layout) = stat.layout else {
            return Err(file.error("open", Status::Internal, "the file has no layout"));
        };
        let chains = self.chains(&layout, &file).await?;
        Ok(file.with_chains(layout, chains))
    }

    /// The chains of a file; waits for routing information that knows its table.
    async fn chains(&self, layout: &Layout, file: &File) -> Result<Arc<[catena_proto::ids::ChainId]>> {
        let deadline = self.deadline();
        let mut routing = self.routing().current();
        loop {
            if let Some(chains) = routing.chains_of(layout) {
                return Ok(chains.into());
            }
            let Some(newer) = self.routing().newer_than(routing.version, deadline).await else {
                let what = format!(
                    "routing information does not know chain {} version {}: see `catena admin tables`",
                    layout.table, layout.table_version
                );
                return Err(file.error("open", Status::TimedOut, &what));
            };
            routing = newer;
        }
    }
}
