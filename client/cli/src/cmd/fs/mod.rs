//! `catena fs`: files and directories.

pub mod change;
pub mod get;
pub mod layout;
pub mod ls;
pub mod mode;
pub mod path;
pub mod put;
pub mod show;
pub mod transfer;
pub mod usage;
pub mod users;
pub mod walk;

use crate::args::ClusterArgs;
use crate::args::fs::FsCommand;
use crate::connect;
use crate::exit::Result;
use crate::output::Output;

/// Runs `catena fs`.
pub async fn run(command: FsCommand, cluster: &ClusterArgs, out: Output) -> Result<()> {
    let fs = connect::client(cluster).await?;
    let outcome = match command {
        FsCommand::Put(args) => put::put(&fs, args, out).await,
        FsCommand::Get(args) => get::get(&fs, args, out).await,
        FsCommand::Cat(args) => get::cat(&fs, args).await,
        FsCommand::Ls(args) => ls::ls(&fs, args, out).await,
        FsCommand::Stat(args) => ls::stat(&fs, args, out).await,
        FsCommand::Tree(args) => ls::tree(&fs, args, out).await,
        FsCommand::Mkdir(args) => change::mkdir(&fs, args).await,
        FsCommand::Rm(args) => change::rm(&fs, args).await,
        FsCommand::Mv(args) => change::mv(&fs, args).await,
        FsCommand::Ln(args) => change::ln(&fs, args).await,
        FsCommand::Chmod(args) => change::chmod(&fs, args).await,
        FsCommand::Chown(args) => change::chown(&fs, args).await,
        FsCommand::Touch(args) => change::touch(&fs, args).await,
        FsCommand::Truncate(args) => change::truncate(&fs, args).await,
        FsCommand::Df(args) => usage::df(&fs, args, out).await,
        FsCommand::Du(args) => usage::du(&fs, args, out).await,
        FsCommand::Layout(args) => layout::layout(&fs, args, out).await,
    };
    fs.close().await;
    outcome
}
