//! Which transport a process uses, as its configuration says it, and making it.

use std::sync::Arc;
#[cfg(feature = "rdma")]
use std::time::Duration;

use catena_buf::BufPool;
use serde::{Deserialize, Serialize};

use crate::handshake::Identity;
use crate::tcp::TcpTransport;
use crate::transport::Transport;

/// What carries data between processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// TCP, which every machine has.
    #[default]
    Tcp,
    /// RDMA. A service with it serves clients over TCP too, as they ask.
    Rdma,
}

/// What to do where RDMA cannot be had: no library, no device, no port that is up, a peer without it, a way that is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Fail, and say why.
    #[default]
    None,
    /// Use TCP, and say so in the log.
    Tcp,
}

/// `transport = "tcp"`, `transport = "rdma"`, or the table `[transport]` with `kind` and what follows. All but `kind` is RDMA's.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct TransportConfig {
    /// Which.
    pub kind: Kind,
    /// Ports to use: `device` or `device:port`. Empty: all that are active.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Entry of the ports' GID tables. Without, the one of the address that is listened on or connected from; else RoCE v2, IPv4 first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid_index: Option<u8>,
    /// Entry of InfiniBand ports' partition tables. Without, the first of which the port is a full member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pkey_index: Option<u16>,
    /// Largest payload of a packet: 256 to 4096 bytes. Without, the ports'; always the smaller of both ends'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Microseconds to look for completions before waiting for an event; 0: not at all.
    #[serde(default)]
    pub busy_poll_us: u32,
    /// Time-out of an acknowledgement: 4.096 us times 2 to the power of this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_timeout: Option<u8>,
    /// Retries after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u8>,
    /// DSCP and ECN bits of RoCE packets: the DSCP times 4.
    #[serde(default)]
    pub traffic_class: u8,
    /// InfiniBand's service level.
    #[serde(default)]
    pub service_level: u8,
    /// MiB for messages, beside the pool: 256 KiB for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_memory_mib: Option<u32>,
    /// What to do where RDMA cannot be had.
    #[serde(default)]
    pub fallback: Fallback,
}

/// As a table: what is derived for a remote type is called by the two implementations below.
impl Serialize for TransportConfig {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        TransportConfig::serialize(self, output)
    }
}

impl<'de> Deserialize<'de> for TransportConfig {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<TransportConfig, D::Error> {
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = TransportConfig;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"tcp\", \"rdma\", or a table with `kind`")
            }
            fn visit_str<E: serde::de::Error>(self, kind: &str) -> Result<TransportConfig, E> {
                let kind = Kind::deserialize(serde::de::value::StrDeserializer::new(kind))?;
                Ok(TransportConfig { kind, ..TransportConfig::default() })
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<TransportConfig, A::Error> {
                let table = serde::de::value::MapAccessDeserializer::new(map);
                let config = TransportConfig::deserialize(table)?;
                config.check().map_err(serde::de::Error::custom)?;
                Ok(config)
            }
        }
        input.deserialize_any(Either)
    }
}

/// A transport that cannot be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("transport = \"rdma\": {0}")]
pub struct OpenError(String);

impl TransportConfig {
    /// Checks what types cannot say.
    fn check(&self) -> Result<(), String> {
        if let Some(mtu) = self.mtu.filter(|mtu| ![256, 512, 1024, 2048, 4096].contains(mtu)) {
            return Err(format!("`mtu`: {mtu} is none of 256, 512, 1024, 2048, 4096"));
        }
        if let Some(timeout) = self.ack_timeout.filter(|timeout| !(1..=31).contains(timeout)) {
            return Err(format!("`ack_timeout`: {timeout} is not between 1 and 31"));
        }
        if let Some(retries) = self.retries.filter(|retries| *retries > 6) {
            return Err(format!("`retries`: {retries} is more than 6 (7 would never end on some devices)"));
        }
        if self.service_level > 15 {
            return Err(format!("`service_level`: {} is more than 15", self.service_level));
        }
        Ok(())
    }

    /// Makes the transport of a process with this identity, whose bulk data lives in `pool`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// RDMA is asked for and cannot be had, and falling back is not allowed.
    pub fn open(&self, identity: Identity, pool: BufPool) -> Result<Arc<dyn Transport>, OpenError> {
        if self.kind == Kind::Tcp {
            return Ok(Arc::new(TcpTransport::new(identity, pool)));
        }
        match self.rdma(identity.clone(), pool.clone()) {
            Ok(transport) => Ok(transport),
            Err(reason) if self.fallback == Fallback::Tcp => {
                tracing::warn!(reason, "using TCP instead of RDMA, as configured");
                Ok(Arc::new(TcpTransport::new(identity, pool)))
            }
            Err(reason) => Err(OpenError(reason)),
        }
    }

    #[cfg(feature = "rdma")]
    fn rdma(&self, identity: Identity, pool: BufPool) -> Result<Arc<dyn Transport>, String> {
        let provider = catena_verbs::ibv::provider().map_err(|error| error.to_string())?;
        let transport = crate::rdma::RdmaTransport::new(provider, identity, pool, self.options());
        Ok(Arc::new(transport.map_err(|error| error.to_string())?))
    }

    /// What it says, for the backend.
    #[cfg(feature = "rdma")]
    pub fn options(&self) -> crate::rdma::RdmaOptions {
        let standard = crate::rdma::RdmaOptions::default();
        crate::rdma::RdmaOptions {
            devices: self.devices.clone(),
            gid_index: self.gid_index,
            pkey_index: self.pkey_index,
            mtu: self.mtu,
            busy_poll: Duration::from_micros(self.busy_poll_us.into()),
            timeout: self.ack_timeout.unwrap_or(standard.timeout),
            retries: self.retries.unwrap_or(standard.retries),
            traffic_class: self.traffic_class,
            service_level: self.service_level,
            message_memory: self
                .message_memory_mib
                .map_or(standard.message_memory, |mib| (mib as usize) << 20),
            fallback: self.fallback,
            ..standard
        }
    }

    #[cfg(not(feature = "rdma"))]
    fn rdma(&self, _: Identity, _: BufPool) -> Result<Arc<dyn Transport>, String> {
        Err("this program was built without it (cargo feature `rdma`)".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug)]
    struct File {
        #[serde(default)]
        transport: TransportConfig,
    }

    fn read(text: &str) -> Result<TransportConfig, String> {
        toml::from_str::<File>(text).map(|file| file.transport).map_err(|error| error.to_string())
    }

    #[test]
    fn a_word_is_enough_and_a_table_says_more() {
        assert_eq!(read("").unwrap().kind, Kind::Tcp);
        assert_eq!(read("transport = \"rdma\"").unwrap().kind, Kind::Rdma);
        let table = "[transport]\nkind = \"rdma\"\ndevices = [\"mlx5_0:1\"]\nfallback = \"tcp\"\nmtu = 1024";
        let config = read(table).unwrap();
        assert_eq!((config.devices.len(), config.mtu, config.fallback), (1, Some(1024), Fallback::Tcp));
        assert_eq!(read(&format!("[transport]\n{}", toml::to_string(&config).unwrap())), Ok(config));
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, says) in [
            ("transport = \"rmda\"", "expected `tcp` or `rdma`"),
            ("[transport]\nkind = \"rdma\"\nmtu = 1500", "1500 is none of 256"),
            ("[transport]\nkind = \"rdma\"\nretries = 7", "more than 6"),
            ("[transport]\nkind = \"rdma\"\ndevice = \"x\"", "unknown field `device`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
