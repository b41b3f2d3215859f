//! What both ends do with what comes in: take completions, put frames together, wait when there is nothing.

use std::future::Future;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::link::{Harvest, Link};
use super::wire::{Place, flag};
use crate::frame::{Broken, Frame, Garbled, HEADER, Header};
use crate::stats::{Counters, add};

/// Rounds of work before others get their turn.
const ROUNDS: u32 = 16;
/// Looks in vain, while polling, before others get their turn.
const SPINS: u32 = 256;
/// Memory of the assembled stream that is kept.
const KEEP: usize = 64 << 10;

/// One end's answer to what comes in.
pub(super) trait Incoming: Send {
    /// A frame.
    fn frame(
        &mut self,
        header: &Header,
        parts: Frame<'_, Place>,
    ) -> impl Future<Output = Result<(), Garbled>> + Send;
    /// A READ of so many bytes with this tag is done.
    fn read(&mut self, tag: u64, len: usize) -> impl Future<Output = ()> + Send;
    /// Something has come in or gone out.
    fn progress(&mut self);
    /// The server has answered the ping.
    fn pong(&mut self);
}

/// Serves a link until it ends; says why it did. The stream says nothing more; that it ends is how a peer's death is heard at once.
pub(super) async fn run(
    link: &Link,
    mut stream: TcpStream,
    end: &mut impl Incoming,
    counters: &Counters,
    busy_poll: Duration,
) -> Broken {
    let mut harvest = Harvest::default();
    let mut spare = [0; 1];
    let (mut rounds, mut spins) = (0_u32, 0_u32);
    let mut busy_since = Instant::now();
    loop {
        match round(link, &mut harvest, end, counters).await {
            Err(broken) => return broken,
            Ok(true) => {
                rounds += 1;
                // When polling, whoever was answered goes on now: otherwise this would spin in its way.
                if rounds % ROUNDS == 0 || !busy_poll.is_zero() {
                    tokio::task::yield_now().await;
                    busy_since = Instant::now();
                }
                continue;
            }
            Ok(false) => {}
        }
        if !busy_poll.is_zero() && busy_since.elapsed() < busy_poll {
            spins += 1;
            // Each turn of the others costs a look at the kernel's events as well.
            if spins % SPINS == 0 {
                tokio::task::yield_now().await;
            }
            // No pause instruction: a look takes longer than one, and in a virtual machine one may be an exit to the host.
            continue;
        }
        if let Err(broken) = link.arm() {
            return broken;
        }
        // What came before it was armed makes no event.
        match round(link, &mut harvest, end, counters).await {
            Err(broken) => return broken,
            Ok(true) => continue,
            Ok(false) => {}
        }
        add(&counters.reads, 1);
        tokio::select! {
            biased;
            event = link.event() => if let Err(broken) = event {
                return broken;
            },
            said = stream.read(&mut spare) => {
                // Answers that were here before the peer left: their event may be late.
                let mut rounds = 0..ROUNDS;
                while rounds.next().is_some()
                    && matches!(round(link, &mut harvest, end, counters).await, Ok(true))
                {}
                return match said {
                    Ok(0) => Broken::Closed,
                    Ok(_) => Garbled("words on a stream that should be silent").into(),
                    Err(error) => error.into(),
                };
            }
        }
        busy_since = Instant::now();
    }
}

/// Takes in and answers what is there. False if there was nothing.
async fn round(
    link: &Link,
    harvest: &mut Harvest,
    end: &mut impl Incoming,
    counters: &Counters,
) -> Result<bool, Broken> {
    // What came before a failure is answered before it.
    let taken = link.harvest(harvest, counters);
    if let Ok(0) = taken {
        return Ok(false);
    }
    let mut at = 0;
    while let Some(bytes) = harvest.frames.get(at..).filter(|bytes| bytes.len() >= HEADER) {
        let header = Header::parse(&bytes[..HEADER])?;
        let whole = HEADER + header.covered::<Place>();
        let Some(bytes) = bytes.get(..whole) else { break };
        let parts = header.open::<Place>(bytes)?;
        end.frame(&header, parts).await?;
        at += whole;
    }
    if at == harvest.frames.len() {
        harvest.frames.clear();
        if harvest.frames.capacity() > KEEP {
            harvest.frames = Vec::new();
        }
    } else if at > 0 {
        harvest.frames.drain(..at);
    }
    for (tag, len) in std::mem::take(&mut harvest.reads) {
        end.read(tag, len).await;
    }
    taken?;
    if std::mem::take(&mut harvest.ping) {
        link.signal(flag::PONG);
    }
    if std::mem::take(&mut harvest.pong) {
        end.pong();
    }
    link.flush(counters);
    end.progress();
    Ok(true)
}
