//! What FoundationDB says of itself, for an operator who asks Catena first.

use catena_kv::KvError;
use foundationdb::options::TransactionOption;

use crate::FdbDatabase;

/// The key under which a client reads the cluster's status as JSON.
const STATUS: &[u8] = b"\xff\xff/status/json";

/// A summary of FoundationDB's machine-readable status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether transactions are accepted.
    pub available: bool,
    /// Whether data is where it should be, in FoundationDB's words ("healthy", "healing", …).
    pub data: String,
    /// Copies ("double", …) and storage engine ("ssd-2", "memory-2", …).
    pub redundancy: String,
    /// See `redundancy`.
    pub engine: String,
    /// Zones that may fail without data loss and without downtime.
    pub failures_tolerated: i64,
    /// Coordinators that answer, of how many.
    pub coordinators: (usize, usize),
    /// Server processes, and the newest version among them.
    pub processes: usize,
    /// See `processes`.
    pub version: String,
    /// Bytes of keys and values in the whole database, once.
    pub bytes: u64,
    /// What FoundationDB complains of.
    pub messages: Vec<String>,
}

impl FdbDatabase {
    /// Asks the cluster for its status. Answers also while the cluster accepts no transactions.
    pub async fn health(&self) -> Result<Health, KvError> {
        let client = self.client();
        let error = |error| client.error(error, 0);
        let tx = client.database.create_trx().map_err(error)?;
        tx.set_option(TransactionOption::ReadSystemKeys).map_err(error)?;
        let status = client.read(0, tx.get(STATUS, true)).await?;
        let bad = |message: String| KvError::Backend { code: 0, message };
        let status = status.ok_or_else(|| bad("no status in \\xff\\xff/status/json".into()))?;
        let status = serde_json::from_slice(&status).map_err(|error| bad(format!("its status: {error}")))?;
        Ok(summary(&status))
    }
}

/// The parts that an operator looks at first. What a release does not say stays empty.
fn summary(status: &serde_json::Value) -> Health {
    let cluster = &status["cluster"];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let coordinators = status["client"]["coordinators"]["coordinators"].as_array().map_or(&[][..], |all| all);
    let reachable = coordinators.iter().filter(|one| one["reachable"] == true).count();
    let processes = cluster["processes"].as_object();
    let versions = processes.iter().flat_map(|all| all.values()).map(|process| text(&process["version"]));
    let tolerance = &cluster["fault_tolerance"];
    let tolerated =
        ["max_zone_failures_without_losing_data", "max_zone_failures_without_losing_availability"];
    let messages = [&cluster["messages"], &status["client"]["messages"]];
    Health {
        available: status["client"]["database_status"]["available"] == true,
        data: text(&cluster["data"]["state"]["name"]),
        redundancy: text(&cluster["configuration"]["redundancy_mode"]),
        engine: text(&cluster["configuration"]["storage_engine"]),
        failures_tolerated: tolerated.iter().filter_map(|key| tolerance[key].as_i64()).min().unwrap_or(0),
        coordinators: (reachable, coordinators.len()),
        processes: processes.map_or(0, |all| all.len()),
        version: versions.max().unwrap_or_default(),
        bytes: cluster["data"]["total_kv_size_bytes"].as_u64().unwrap_or(0),
        messages: messages
            .into_iter()
            .filter_map(|all| all.as_array())
            .flatten()
            .map(|message| {
                let described = text(&message["description"]);
                if described.is_empty() { text(&message["name"]) } else { described }
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_small_cluster_is_summed_up() {
        let status = serde_json::json!({
            "client": {
                "database_status": {"available": true, "healthy": true},
                "coordinators": {"coordinators": [{"address": "127.0.0.1:4500", "reachable": true}, {"reachable": false}]},
                "messages": [{"name": "unreachable_coordinators", "description": "1 coordinator is unreachable"}]
            },
            "cluster": {
                "configuration": {"redundancy_mode": "single", "storage_engine": "memory-2"},
                "data": {"state": {"name": "healthy"}, "total_kv_size_bytes": 1234},
                "fault_tolerance": {"max_zone_failures_without_losing_data": 1, "max_zone_failures_without_losing_availability": 0},
                "processes": {"a": {"version": "7.3.80"}, "b": {"version": "7.3.79"}},
                "messages": []
            }
        });
        let expected = Health {
            available: true,
            data: "healthy".into(),
            redundancy: "single".into(),
            engine: "memory-2".into(),
            failures_tolerated: 0,
            coordinators: (1, 2),
            processes: 2,
            version: "7.3.80".into(),
            bytes: 1234,
            messages: vec!["1 coordinator is unreachable".into()],
        };
        assert_eq!(summary(&status), expected);
        assert_eq!(summary(&serde_json::json!({})), Health::default());
    }
}
