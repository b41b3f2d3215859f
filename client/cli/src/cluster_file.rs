//! `cluster.toml`: what a client needs to find a cluster and to prove that it belongs there.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use catena_net::TransportConfig;
use catena_proto::ids::ClusterId;
use catena_proto::token::Token;
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure, Result};
use crate::toml_file;

/// A cluster as clients know it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its identity.
    pub id: ClusterId,
    /// Its secret.
    pub token: Token,
    /// Where its managers answer, `host:port`.
    pub mgmtd: Vec<String>,
    /// What carries data between clients and storage services.
    pub transport: TransportConfig,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    cluster: String,
    token: String,
    mgmtd: Vec<String>,
    #[serde(default, skip_serializing_if = "is_standard")]
    transport: TransportConfig,
}

fn is_standard(transport: &TransportConfig) -> bool {
    *transport == TransportConfig::default()
}

impl Cluster {
    /// Reads a cluster file.
    pub fn load(path: &Path) -> Result<Cluster> {
        let text = toml_file::read(path).map_err(|failure| {
            failure
                .about("cluster file")
                .hint("`catena dev --dir DIR` makes a cluster and writes DIR/cluster.toml")
        })?;
        let fields: Fields = toml_file::parse(path, &text)?;
        let bad = |what: &str| Failure::usage(format!("{}: {what}", path.display()));
        let id = fields.cluster.parse().map_err(|_| bad("`cluster` is not 32 hexadecimal digits"))?;
        let token = fields.token.parse().map_err(|error| bad(&format!("`token`: {error}")))?;
        if fields.mgmtd.is_empty() {
            return Err(bad("`mgmtd` names no address"));
        }
        if let Ok(meta) = std::fs::metadata(path)
            && meta.permissions().mode() & 0o077 != 0
        {
            tracing::warn!(
                "{} can be read by others and holds the cluster's token: chmod 600 it",
                path.display()
            );
        }
        Ok(Cluster { id, token, mgmtd: fields.mgmtd, transport: fields.transport })
    }

    /// Writes a cluster file that only its owner can read.
    pub fn save(&self, path: &Path) -> Result<()> {
        let fields = Fields {
            cluster: self.id.to_string(),
            token: self.token.to_hex(),
            mgmtd: self.mgmtd.clone(),
            transport: self.transport.clone(),
        };
        let text = format!(
            "# A Catena cluster. Keep it to yourself: whoever has the token belongs to the cluster.\n\
             # Clients: --cluster THIS_FILE or CATENA_CLUSTER=THIS_FILE.\n{}",
            toml::to_string(&fields).map_err(|error| Failure::failed(error.to_string()))?
        );
        write_private(path, &text)
    }
}

/// Replaces `path` by `text`, mode 0600, in one step.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("new");
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|error| Failure::io(path.display(), error))
}

/// The file that `--cluster` or `CATENA_CLUSTER` names.
pub fn locate(option: Option<PathBuf>) -> Result<PathBuf> {
    option.ok_or_else(|| {
        Failure::new(Exit::Usage, "no cluster named").hint(
            "use --cluster FILE or set CATENA_CLUSTER; `catena dev --dir DIR` makes a cluster and writes DIR/cluster.toml",
        )
    })
}
