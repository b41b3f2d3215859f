//! What a key-value service counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of a key-value service.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) read_versions: Counter,
    pub(crate) gets: Counter,
    pub(crate) ranges: Counter,
    pub(crate) commits: Counter,
    pub(crate) refused: Counter,
    pub(crate) views: Gauge,
}

impl Metrics {
    /// Adds them to `registry`, under `kv_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kv");
        let counters = [
            ("read_versions", "Read versions handed out by themselves", &self.read_versions),
            ("gets", "Keys read", &self.gets),
            ("ranges", "Pages of ranges read", &self.ranges),
            ("commits", "Commits asked for", &self.commits),
            ("commits_refused", "Commits refused because of a conflict or their age", &self.refused),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("views", "Versions kept for transactions to read at", self.views.clone());
    }
}
