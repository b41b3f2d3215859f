//! TCP ports for the services of a local cluster: chosen once, then kept, so that a restarted cluster is where its clients expect it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rand::Rng;

use crate::exit::{Exit, Failure, Result};

/// Below Linux's ephemeral ports (from 32768), so that no outgoing connection takes one while the cluster is down.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// `count` ports that nobody listens on now.
pub fn choose(count: usize, rng: &mut impl Rng) -> Result<Vec<u16>> {
    let mut chosen: Vec<u16> = Vec::with_capacity(count);
    // Held until all are chosen, so that none is chosen twice.
    let mut held = Vec::with_capacity(count);
    for _ in 0..count * 100 + 1000 {
        if chosen.len() == count {
            break;
        }
        let port = rng.random_range(RANGE);
        if let Ok(listener) = listen(port) {
            held.push(listener);
            chosen.push(port);
        }
    }
    if chosen.len() < count {
        return Err(Failure::failed(format!(
            "cannot find {count} free ports in {}..{}",
            RANGE.start, RANGE.end
        )));
    }
    Ok(chosen)
}

/// Fails if somebody listens on `port`; `whose` says which service wants it.
pub fn check_free(port: u16, whose: &str, state_file: &std::path::Path) -> Result<()> {
    match listen(port) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let hint = format!(
                "`ss -ltnp 'sport = :{port}'` shows who has it; or delete the [ports] table from {} for new ports",
                state_file.display()
            );
            Err(Failure::new(Exit::Exists, format!("port {port} of {whose} is in use")).hint(hint))
        }
        Err(error) => Err(Failure::io(format_args!("port {port} of {whose}"), error)),
    }
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let mut ports = choose(20, &mut rand::rng()).unwrap();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 20);
        assert!(ports.iter().all(|port| RANGE.contains(port)));
    }

    #[test]
    fn a_port_in_use_is_named_with_its_owner() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let failure = check_free(port, "meta", std::path::Path::new("D/dev.toml")).unwrap_err();
        assert_eq!(failure.message, format!("port {port} of meta is in use"));
        assert!(failure.hint.unwrap().contains("D/dev.toml"));
    }
}
