//! `cluster.toml`: what a client needs to find a cluster and to prove that it belongs there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use catena_net::TransportConfig;
use catena_proto::ids::ClusterId;
use catena_proto::token::Token;
use serde::Deserialize;

/// A cluster as its clients know it.
///
/// ```
/// use catena_client::ClusterFile;
/// let text = format!("cluster = \"{:032x}\"\ntoken = \"{}\"\nmgmtd = [\"127.0.0.1:9000\"]", 7, "ab".repeat(32));
/// let cluster: ClusterFile = text.parse().unwrap();
/// assert_eq!(cluster.mgmtd, ["127.0.0.1:9000"]);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterFile {
    /// The cluster's identity.
    pub cluster: ClusterId,
    /// Its secret: whoever has it belongs to the cluster.
    pub token: Token,
    /// Where its managers answer, `host:port` each.
    pub mgmtd: Vec<String>,
    /// What carries data between this client and storage services.
    pub transport: TransportConfig,
}

/// A cluster file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// Neither an argument nor the environment names one.
    #[error(
        "no cluster named: set CATENA_CLUSTER to a cluster file (`catena dev --dir DIR` writes DIR/cluster.toml)"
    )]
    NotNamed,
    /// It cannot be read.
    #[error(
        "cluster file {path}: {error}; `catena dev --dir DIR` makes a cluster and writes DIR/cluster.toml"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("cluster file{}: {what}", Named(path))]
    Content {
        /// The file; empty when parsed from text.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

struct Named<'a>(&'a Path);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.as_os_str().is_empty() { Ok(()) } else { write!(f, " {}", self.0.display()) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    cluster: String,
    token: String,
    mgmtd: Vec<String>,
    #[serde(default)]
    transport: TransportConfig,
}

impl ClusterFile {
    /// Reads a cluster file.
    pub fn load(path: impl AsRef<Path>) -> Result<ClusterFile, ClusterFileError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ClusterFileError::Read { path: path.into(), error })?;
        text.parse().map_err(|error| match error {
            ClusterFileError::Content { what, .. } => ClusterFileError::Content { path: path.into(), what },
            other => other,
        })
    }

    /// Reads the file that the environment variable `CATENA_CLUSTER` names.
    pub fn from_env() -> Result<ClusterFile, ClusterFileError> {
        ClusterFile::load(std::env::var_os("CATENA_CLUSTER").ok_or(ClusterFileError::NotNamed)?)
    }
}

impl FromStr for ClusterFile {
    type Err = ClusterFileError;

    fn from_str(text: &str) -> Result<ClusterFile, ClusterFileError> {
        let bad = |what: String| ClusterFileError::Content { path: PathBuf::new(), what };
        // The error's own text would quote the line, and the line may be the token.
        let fields: Fields = toml::from_str(text).map_err(|error| bad(error.message().into()))?;
        let cluster =
            fields.cluster.parse().map_err(|_| bad("`cluster` is not 32 hexadecimal digits".into()))?;
        let token = fields.token.parse().map_err(|error| bad(format!("`token`: {error}")))?;
        if fields.mgmtd.is_empty() {
            return Err(bad("`mgmtd` names no address".into()));
        }
        Ok(ClusterFile { cluster, token, mgmtd: fields.mgmtd, transport: fields.transport })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_cluster_file_is_named_and_the_token_is_not_shown() {
        let token = "cd".repeat(32);
        let says = |text: &str| text.parse::<ClusterFile>().unwrap_err().to_string();
        let good = format!("cluster = '{:032x}'\ntoken = '{token}'\nmgmtd = ['a:1']\n", 1);
        assert!(good.parse::<ClusterFile>().is_ok());
        assert!(says(&good.replace("mgmtd", "mgmt")).contains("mgmt"));
        assert!(says(&good.replace("'a:1'", "")).contains("names no address"));
        assert!(says(&good.replace("cluster = '0", "cluster = 'x")).contains("`cluster`"));
        for text in [good.replace("cdcd'", "cd"), good.replace("token = 'cd", "token = 'c")] {
            assert!(!says(&text).contains("cdcdcd"), "{}", says(&text));
        }
        let missing = ClusterFile::load("/nonexistent/cluster.toml").unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/cluster.toml") && missing.contains("catena dev"), "{missing}");
    }
}
