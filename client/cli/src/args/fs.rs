//! `fs`: files and directories, with the options that people know from the tools of the same names.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

use crate::units::{parse_chunk_size, parse_size};

/// `catena fs`.
#[derive(Subcommand, Debug)]
pub enum FsCommand {
    /// Copy local files into the cluster.
    #[command(after_help = "Examples:
  catena fs put model.bin /models/
  catena fs put -r ./dataset /data
  tar c src | catena fs put - /src.tar")]
    Put(PutArgs),
    /// Copy files out of the cluster.
    #[command(after_help = "Examples:
  catena fs get /models/model.bin .
  catena fs get -r /data ./copy
  catena fs get /src.tar - | tar t")]
    Get(GetArgs),
    /// Write files to stdout.
    #[command(after_help = "Examples:
  catena fs cat /etc/motd
  catena fs cat --offset 1MiB --length 4KiB /models/model.bin | xxd")]
    Cat(CatArgs),
    /// List directories.
    #[command(after_help = "Examples:
  catena fs ls /
  catena fs ls -l /models
  catena fs ls -lRt /data")]
    Ls(LsArgs),
    /// Show inodes.
    #[command(
        after_help = "Examples:\n  catena fs stat /models/model.bin\n  catena fs stat -L /latest --json"
    )]
    Stat(StatArgs),
    /// Make directories.
    #[command(after_help = "Examples:\n  catena fs mkdir /data\n  catena fs mkdir -p -m 2775 /teams/a/b")]
    Mkdir(MkdirArgs),
    /// Remove files, or whole trees with -r (on the server, at once).
    #[command(after_help = "Examples:\n  catena fs rm /data/old.bin\n  catena fs rm -rf /data/scratch")]
    Rm(RmArgs),
    /// Rename or move.
    #[command(after_help = "Examples:
  catena fs mv /a /b
  catena fs mv /x /y /dir/
  catena fs mv --exchange /current /next")]
    Mv(MvArgs),
    /// Make hard links, or symbolic ones with -s.
    #[command(after_help = "Examples:\n  catena fs ln /a /b\n  catena fs ln -s ../models/v2 /models/latest")]
    Ln(LnArgs),
    /// Change permission bits.
    #[command(after_help = "Examples:\n  catena fs chmod 640 /secret\n  catena fs chmod -R u+rwX,go-w /data")]
    Chmod(ChmodArgs),
    /// Change owners.
    #[command(
        after_help = "Examples:\n  catena fs chown 1000:1000 /data\n  catena fs chown -R alice:users /home/alice"
    )]
    Chown(ChownArgs),
    /// Make empty files, or set times.
    #[command(
        after_help = "Examples:\n  catena fs touch /marker\n  catena fs touch -m -d 2025-03-14T12:00:00Z /data/x"
    )]
    Touch(TouchArgs),
    /// Set files' lengths.
    #[command(after_help = "Examples:\n  catena fs truncate -s 0 /log\n  catena fs truncate -s +1GiB /image")]
    Truncate(TruncateArgs),
    /// Space of the whole file system.
    #[command(after_help = "Examples:\n  catena fs df\n  catena fs df --bytes")]
    Df(DfArgs),
    /// Bytes used by trees.
    #[command(after_help = "Examples:\n  catena fs du -s /data\n  catena fs du -d 1 /")]
    Du(DuArgs),
    /// Draw a tree.
    #[command(after_help = "Examples:\n  catena fs tree /data\n  catena fs tree -L 2 -s /")]
    Tree(TreeArgs),
    /// Show where a file's chunks are, or set what new files get.
    #[command(after_help = "Examples:
  catena fs layout /models/model.bin
  catena fs layout /models/model.bin --checksums
  catena fs layout set /models --chunk-size 16MiB --stripe 8")]
    Layout(LayoutArgs),
}

/// `catena fs put`.
#[derive(Args, Debug)]
#[command(override_usage = "catena fs put [OPTIONS] <LOCAL>... <PATH>")]
pub struct PutArgs {
    /// Local files (`-` is stdin), then where to.
    #[arg(required = true, num_args = 2.., value_names = ["LOCAL", "PATH"])]
    pub paths: Vec<PathBuf>,
    /// Directories with all that is in them.
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
    /// Keep modes and modification times.
    #[arg(short, long)]
    pub preserve: bool,
    /// Leave files that exist alone.
    #[arg(short, long)]
    pub no_clobber: bool,
    /// Make missing parent directories of the destination.
    #[arg(long)]
    pub parents: bool,
    /// Files in flight at once.
    #[arg(short, long, default_value_t = 8, value_name = "N")]
    pub jobs: usize,
    /// Bytes in a chunk of the new files [default: the directory's].
    #[arg(long, value_parser = parse_chunk_size, value_name = "SIZE")]
    pub chunk_size: Option<u32>,
    /// Chains that a new file goes round [default: the directory's].
    #[arg(long, value_name = "N")]
    pub stripe: Option<u32>,
}

/// `catena fs get`.
#[derive(Args, Debug)]
#[command(override_usage = "catena fs get [OPTIONS] <PATH>... <LOCAL>")]
pub struct GetArgs {
    /// Files, then where to (`-` is stdout).
    #[arg(required = true, num_args = 2.., value_names = ["PATH", "LOCAL"])]
    pub paths: Vec<PathBuf>,
    /// Directories with all that is in them.
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
    /// Keep modes and modification times.
    #[arg(short, long)]
    pub preserve: bool,
    /// Leave files that exist alone.
    #[arg(short, long)]
    pub no_clobber: bool,
    /// Files in flight at once.
    #[arg(short, long, default_value_t = 8, value_name = "N")]
    pub jobs: usize,
}

/// `catena fs cat`.
#[derive(Args, Debug)]
pub struct CatArgs {
    /// Files.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Start here.
    #[arg(long, value_parser = parse_size, default_value = "0", hide_default_value = true, value_name = "SIZE")]
    pub offset: u64,
    /// At most so many bytes.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub length: Option<u64>,
}

/// `catena fs ls`.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub struct LsArgs {
    /// Files and directories.
    #[arg(default_value = "/")]
    pub paths: Vec<PathBuf>,
    /// Mode, links, owner, size and time.
    #[arg(short)]
    pub long: bool,
    /// Names that begin with a dot too.
    #[arg(short, long)]
    pub all: bool,
    /// Subdirectories too.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// The directory itself, not what is in it.
    #[arg(short, long)]
    pub directory: bool,
    /// Newest first.
    #[arg(short)]
    pub time: bool,
    /// Largest first.
    #[arg(short = 'S')]
    pub size: bool,
    /// The other way round.
    #[arg(short, long)]
    pub reverse: bool,
    /// Inode numbers.
    #[arg(short, long)]
    pub inode: bool,
    /// A `/` behind directories, `@` behind symbolic links.
    #[arg(short = 'F', long)]
    pub classify: bool,
    /// Sizes in bytes.
    #[command(flatten)]
    pub units: UnitArgs,
}

/// How sizes are shown.
#[derive(Args, Debug, Clone, Copy)]
pub struct UnitArgs {
    /// Exact sizes, in bytes.
    #[arg(short, long)]
    pub bytes: bool,
    /// Sizes in KiB, MiB, ... (the default; the option is there for your fingers).
    #[arg(short, long, conflicts_with = "bytes")]
    pub human_readable: bool,
    /// Print help.
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,
}

/// `catena fs stat`.
#[derive(Args, Debug)]
pub struct StatArgs {
    /// Files.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// What a symbolic link points to.
    #[arg(short = 'L', long)]
    pub dereference: bool,
}

/// `catena fs mkdir`.
#[derive(Args, Debug)]
pub struct MkdirArgs {
    /// Directories to make.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Missing parents too; none is an error if it exists.
    #[arg(short, long)]
    pub parents: bool,
    /// Permission bits, octal [default: 0777 less the umask].
    #[arg(short, long, value_parser = parse_mode, value_name = "MODE")]
    pub mode: Option<u32>,
}

/// `catena fs rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// What to remove.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Directories with all that is in them.
    #[arg(short, long, visible_short_alias = 'R')]
    pub recursive: bool,
    /// Empty directories.
    #[arg(short, long)]
    pub dir: bool,
    /// What is not there is no error.
    #[arg(short, long)]
    pub force: bool,
}

/// `catena fs mv`.
#[derive(Args, Debug)]
#[command(override_usage = "catena fs mv [OPTIONS] <FROM>... <TO>")]
pub struct MvArgs {
    /// What, then where to.
    #[arg(required = true, num_args = 2.., value_names = ["FROM", "TO"])]
    pub paths: Vec<PathBuf>,
    /// Never replace what is there.
    #[arg(short, long)]
    pub no_clobber: bool,
    /// The two change places, atomically.
    #[arg(long, conflicts_with = "no_clobber")]
    pub exchange: bool,
    /// The destination is the new name, even where it is a directory.
    #[arg(short = 'T', long)]
    pub no_target_directory: bool,
}

/// `catena fs ln`.
#[derive(Args, Debug)]
pub struct LnArgs {
    /// What the link leads to.
    pub target: PathBuf,
    /// The link.
    pub link: PathBuf,
    /// A symbolic link; its target need not exist.
    #[arg(short, long)]
    pub symbolic: bool,
    /// Replace what is there.
    #[arg(short, long)]
    pub force: bool,
}

/// `catena fs chmod`.
#[derive(Args, Debug)]
pub struct ChmodArgs {
    /// Octal (`640`) or symbolic (`u+x,go-w`).
    #[arg(allow_hyphen_values = true)]
    pub mode: String,
    /// Files.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Directories with all that is in them.
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// `catena fs chown`.
#[derive(Args, Debug)]
pub struct ChownArgs {
    /// `USER`, `USER:GROUP` or `:GROUP`; numbers, or names of this machine.
    pub owner: String,
    /// Files.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Directories with all that is in them.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Symbolic links themselves, not what they lead to.
    #[arg(long)]
    pub no_dereference: bool,
}

/// `catena fs touch`.
#[derive(Args, Debug)]
pub struct TouchArgs {
    /// Files.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Make no files.
    #[arg(short = 'c', long)]
    pub no_create: bool,
    /// Only the time of access.
    #[arg(short)]
    pub access: bool,
    /// Only the time of modification.
    #[arg(short)]
    pub modification: bool,
    /// This time instead of now: 2025-03-14, 2025-03-14T15:09:26Z or @SECONDS (UTC).
    #[arg(short, long, value_parser = crate::units::parse_date, value_name = "TIME")]
    pub date: Option<i64>,
}

/// `catena fs truncate`.
#[derive(Args, Debug)]
pub struct TruncateArgs {
    /// Files.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// The length; `+SIZE` and `-SIZE` change it by so much.
    #[arg(short, long, allow_hyphen_values = true, value_name = "SIZE")]
    pub size: String,
    /// Make no files.
    #[arg(short = 'c', long)]
    pub no_create: bool,
}

/// `catena fs df`.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub struct DfArgs {
    /// Sizes in bytes.
    #[command(flatten)]
    pub units: UnitArgs,
}

/// `catena fs du`.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub struct DuArgs {
    /// Files and directories.
    #[arg(default_value = "/")]
    pub paths: Vec<PathBuf>,
    /// Only the total of each argument, counted on the server.
    #[arg(short, long)]
    pub summarize: bool,
    /// Files too.
    #[arg(short, long, conflicts_with = "summarize")]
    pub all: bool,
    /// Only so many levels deep.
    #[arg(short = 'd', long, conflicts_with = "summarize", value_name = "N")]
    pub max_depth: Option<usize>,
    /// Sizes in bytes.
    #[command(flatten)]
    pub units: UnitArgs,
}

/// `catena fs tree`.
#[derive(Args, Debug)]
pub struct TreeArgs {
    /// The root of the drawing.
    #[arg(default_value = "/")]
    pub path: PathBuf,
    /// Only so many levels deep.
    #[arg(short = 'L', long, value_name = "N")]
    pub level: Option<usize>,
    /// Only directories.
    #[arg(short, long)]
    pub directories: bool,
    /// Sizes too.
    #[arg(short, long)]
    pub size: bool,
    /// Names that begin with a dot too.
    #[arg(short, long)]
    pub all: bool,
}

/// `catena fs layout`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LayoutArgs {
    /// What else than showing.
    #[command(subcommand)]
    pub command: Option<LayoutCommand>,
    /// The file or directory.
    #[arg(required = true)]
    pub path: Option<PathBuf>,
    /// Ask every replica of every chunk for its version, length and checksum.
    #[arg(long)]
    pub checksums: bool,
    /// Show at most so many chunks.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub limit: u64,
}

/// `catena fs layout set`.
#[derive(Subcommand, Debug)]
pub enum LayoutCommand {
    /// Set what files and directories created below a directory get.
    #[command(after_help = "Examples:
  catena fs layout set /models --chunk-size 16MiB
  catena fs layout set /logs --stripe 1 --table 1
  catena fs layout set /logs --inherit")]
    Set {
        /// The directory.
        path: PathBuf,
        /// Chain table.
        #[arg(long, value_name = "ID")]
        table: Option<u32>,
        /// Bytes in a chunk: a power of two, 64KiB to 64MiB.
        #[arg(long, value_parser = parse_chunk_size, value_name = "SIZE")]
        chunk_size: Option<u32>,
        /// Chains that a file goes round.
        #[arg(long, value_name = "N")]
        stripe: Option<u32>,
        /// Forget what was set before: what is not named comes from the directory above again.
        #[arg(long)]
        inherit: bool,
    },
}

/// Permission bits, octal.
pub fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777 && !text.starts_with('+'))
        .ok_or_else(|| format!("`{text}` is not an octal mode such as 755 or 2775"))
}

/// A truncate length: absolute, or by how much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewLength {
    /// So long.
    To(u64),
    /// So much longer.
    Grow(u64),
    /// So much shorter, at most to nothing.
    Shrink(u64),
}

impl NewLength {
    /// Reads `SIZE`, `+SIZE`, `-SIZE`.
    pub fn parse(text: &str) -> Result<NewLength, String> {
        Ok(match text.as_bytes().first() {
            Some(b'+') => NewLength::Grow(parse_size(&text[1..])?),
            Some(b'-') => NewLength::Shrink(parse_size(&text[1..])?),
            _ => NewLength::To(parse_size(text)?),
        })
    }
    /// The length of a file that is `length` long now.
    pub fn apply(self, length: u64) -> u64 {
        match self {
            NewLength::To(to) => to,
            NewLength::Grow(by) => length.saturating_add(by),
            NewLength::Shrink(by) => length.saturating_sub(by),
        }
    }
}

impl FsCommand {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            FsCommand::Put(_) => "put",
            FsCommand::Get(_) => "get",
            FsCommand::Cat(_) => "cat",
            FsCommand::Ls(_) => "ls",
            FsCommand::Stat(_) => "stat",
            FsCommand::Mkdir(_) => "mkdir",
            FsCommand::Rm(_) => "rm",
            FsCommand::Mv(_) => "mv",
            FsCommand::Ln(_) => "ln",
            FsCommand::Chmod(_) => "chmod",
            FsCommand::Chown(_) => "chown",
            FsCommand::Touch(_) => "touch",
            FsCommand::Truncate(_) => "truncate",
            FsCommand::Df(_) => "df",
            FsCommand::Du(_) => "du",
            FsCommand::Tree(_) => "tree",
            FsCommand::Layout(_) => "layout",
        }
    }
}
