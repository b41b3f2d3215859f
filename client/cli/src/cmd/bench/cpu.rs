//! CPU seconds of this process and of the cluster's services on this machine, from `/proc`.

use catena_proto::routing::RoutingInfo;

/// The services whose CPU time can be read: those on this machine.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    pids: Vec<u32>,
}

impl Servers {
    /// Those of the cluster. A process id counts only if a `catena serve` has it here: the node may be on another machine.
    pub fn of(routing: &RoutingInfo) -> Servers {
        let is_catena = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"serve")
        };
        let mut pids: Vec<_> = routing.nodes.values().map(|node| node.pid).filter(|pid| *pid != 0).collect();
        pids.retain(is_catena);
        pids.sort();
        pids.dedup();
        Servers { pids }
    }

    /// Their CPU seconds so far, user and system; nothing if none is here.
    pub fn seconds(&self) -> Option<f64> {
        (!self.pids.is_empty()).then(|| self.pids.iter().filter_map(|pid| seconds(&pid.to_string())).sum())
    }
}

/// This process's CPU seconds so far.
pub fn own() -> f64 {
    seconds("self").unwrap_or(0.0)
}

fn seconds(pid: &str) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks(&stat).map(|ticks| ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// utime + stime, fields 14 and 15 of proc_pid_stat(5). The second field, the name, may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 100 23 0 0 20 0 1 0 1 1 1";
        assert_eq!(super::ticks(stat), Some(123));
    }

    #[test]
    fn the_own_time_can_be_read() {
        assert!(super::seconds("self").is_some());
    }
}
