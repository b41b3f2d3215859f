//! A queue pair of type RC with a completion queue and channel of its own.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::device::Domain;
use super::library::{clear_errno, create_qp_ex, errno};
use super::post::{self, Calls, Posting};
use super::sys::*;
use super::{address, describe, events, memory};
use crate::error::{CompletionError, VerbsError};
use crate::provider::{Access, Completion, Depths, Endpoint, LinkLayer, Path, PeerAddress, Receive, Work};

/// Completions that are taken from the queue at a time.
const POLL: usize = 32;
/// Events that are acknowledged together: that takes a lock.
const ACKNOWLEDGE: u32 = 256;
/// How long a peer waits that sent when there was no receive: 0.64 ms (`ibv_modify_qp(3)`). Credits see to it that none does.
const RNR_TIMER: u8 = 12;

/// The channel's file, which the channel closes.
struct ChannelFile(RawFd);

impl AsRawFd for ChannelFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// A completion channel and queue.
struct Completions {
    channel: NonNull<ibv_comp_channel>,
    queue: Option<NonNull<ibv_cq>>,
    /// `None` while it is being dropped, and where the channel cannot be waited for.
    events: Option<AsyncFd<ChannelFile>>,
    unacknowledged: AtomicU32,
    domain: Arc<Domain>,
}

impl Completions {
    fn new(domain: Arc<Domain>, depth: u32) -> Result<Completions, VerbsError> {
        let context = &domain.context;
        clear_errno();
        // SAFETY: the context is open.
        let channel = unsafe { (context.functions.ibv_create_comp_channel)(context.raw.as_ptr()) };
        let channel =
            NonNull::new(channel).ok_or_else(|| context.failed("ibv_create_comp_channel", errno()))?;
        // Owned from here on.
        let mut completions =
            Completions { channel, queue: None, events: None, unacknowledged: AtomicU32::new(0), domain };
        let context = &completions.domain.context;
        // SAFETY: the channel is there.
        let file = ChannelFile(unsafe { channel.as_ref() }.fd);
        let events = events::set_nonblocking(&file).and_then(|()| {
            // SAFETY: the file is the channel's, which outlives this: see the order of fields and `Drop` below.
            unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }.map_err(Into::into)
        });
        completions.events = Some(events.map_err(|error| context.failed("waiting for completions", error))?);
        // SAFETY: the context is open.
        let vectors = unsafe { context.raw.as_ref() }.num_comp_vectors.max(1) as usize;
        let vector = completions.domain.vector.fetch_add(1, Relaxed) % vectors;
        let depth = c_int::try_from(depth).unwrap_or(c_int::MAX);
        clear_errno();
        // SAFETY: channel and context are there.
        let queue = unsafe {
            (context.functions.ibv_create_cq)(
                context.raw.as_ptr(),
                depth,
                null_mut(),
                channel.as_ptr(),
                vector as c_int,
            )
        };
        let queue =
            NonNull::new(queue).ok_or_else(|| context.failed(queue_verb("ibv_create_cq"), errno()))?;
        completions.queue = Some(queue);
        Ok(completions)
    }

    fn queue(&self) -> *mut ibv_cq {
        self.queue.map_or(null_mut(), NonNull::as_ptr)
    }

    fn poll(&self, completions: &mut Vec<Completion>, at_most: usize) -> Result<(), VerbsError> {
        let (queue, context) = (self.queue(), &self.domain.context);
        // SAFETY: the context is open.
        let Some(poll) = (unsafe { context.raw.as_ref() }).ops.poll_cq else {
            return Err(context.failed("ibv_poll_cq", io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        };
        let mut left = at_most;
        while left > 0 {
            let mut found = [const { MaybeUninit::<ibv_wc>::uninit() }; POLL];
            let wanted = left.min(POLL);
            // SAFETY: the queue is there, and there is room for so many.
            let count = unsafe { poll(queue, wanted as c_int, found.as_mut_ptr().cast()) };
            let count = usize::try_from(count).map_err(|_| {
                // It gives up only if the queue itself is damaged.
                let code = if count == -1 { libc::EIO } else { count.saturating_neg() };
                context.failed("ibv_poll_cq", io::Error::from_raw_os_error(code))
            })?;
            completions.extend(found.iter().take(count).map(|completion| {
                // SAFETY: the library filled in the first `count`.
                let completion = unsafe { completion.assume_init_ref() };
                let result = match completion.status {
                    IBV_WC_SUCCESS => Ok(completion.byte_len),
                    status => Err(CompletionError(status)),
                };
                Completion { id: completion.wr_id, result }
            }));
            if count < wanted {
                break;
            }
            left -= count;
        }
        Ok(())
    }

    fn arm(&self) -> Result<(), VerbsError> {
        let context = &self.domain.context;
        // SAFETY: the context is open.
        let status = match unsafe { context.raw.as_ref() }.ops.req_notify_cq {
            // SAFETY: the queue is there.
            Some(notify) => unsafe { notify(self.queue(), 0) },
            None => libc::EOPNOTSUPP,
        };
        context.check("ibv_req_notify_cq", status)
    }

    fn poll_event(&self, waiter: &mut Context<'_>) -> Poll<Result<(), VerbsError>> {
        let context = &self.domain.context;
        let failed = |error| context.failed("waiting for completions", error);
        let Some(events) = &self.events else {
            return Poll::Ready(Err(failed(io::ErrorKind::NotConnected.into())));
        };
        loop {
            let mut ready = match ready!(events.poll_read_ready(waiter)) {
                Ok(ready) => ready,
                Err(error) => return Poll::Ready(Err(failed(error))),
            };
            let (mut count, end) = self.take_events();
            if end.kind() != io::ErrorKind::WouldBlock {
                return Poll::Ready(Err(failed(end)));
            }
            ready.clear_ready();
            if count > 0 {
                count += self.unacknowledged.fetch_add(count, Relaxed);
                if count >= ACKNOWLEDGE {
                    self.acknowledge();
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes all events there are; says how many, and what ended it.
    fn take_events(&self) -> (u32, io::Error) {
        let mut count = 0;
        loop {
            let (mut queue, mut cookie) = (null_mut(), null_mut());
            clear_errno();
            // SAFETY: the channel is there, and both are written to.
            let status = unsafe {
                (self.domain.context.functions.ibv_get_cq_event)(
                    self.channel.as_ptr(),
                    &mut queue,
                    &mut cookie,
                )
            };
            if status != 0 {
                return (count, errno());
            }
            debug_assert_eq!(queue, self.queue(), "the channel has one queue");
            count += 1;
        }
    }

    fn acknowledge(&self) {
        let count = self.unacknowledged.swap(0, Relaxed);
        if count > 0 {
            // SAFETY: the queue is there; each event is acknowledged once.
            unsafe { (self.domain.context.functions.ibv_ack_cq_events)(self.queue(), count) }
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        let context = &self.domain.context;
        if let Some(queue) = self.queue {
            // Destroying it waits until all its events are acknowledged.
            self.acknowledge();
            // SAFETY: the queue pair that used it is gone.
            let status = unsafe { (context.functions.ibv_destroy_cq)(queue.as_ptr()) };
            match context.check("ibv_destroy_cq", status) {
                Err(error) if self.domain.loss.happened() => {
                    tracing::debug!("a completion queue went with its device: {error}");
                }
                Err(error) => tracing::warn!("{error}"),
                Ok(()) => {}
            }
        }
        // The runtime lets go of the file before the channel closes it and its number is another's.
        self.events = None;
        // SAFETY: its queue is gone; if not, it says so and does nothing.
        let status = unsafe { (context.functions.ibv_destroy_comp_channel)(self.channel.as_ptr()) };
        let Err(error) = context.check("ibv_destroy_comp_channel", status) else { return };
        if self.domain.loss.happened() {
            // The queue stays, as far as the library knows. What counts is the file: there would be one more with each loss.
            // SAFETY: the channel is there, and nobody but this has it or ever closes its file.
            unsafe { libc::close((*self.channel.as_ptr()).fd) };
            return tracing::debug!("a completion channel went with its device: {error}");
        }
        tracing::warn!("{error}");
    }
}

/// A queue pair. Its work is posted with `ibv_wr_*`, or as lists with `ibv_post_send` if the driver has no `ibv_create_qp_ex`, or no
/// `ibv_wr_*` for what we need.
pub struct RcEndpoint {
    pair: NonNull<ibv_qp>,
    number: u32,
    inline: usize,
    calls: Option<Calls>,
    /// It has failed by itself, and its work makes no completions.
    failed: Arc<AtomicBool>,
    // Dropped after the queue pair was destroyed, in `drop`.
    completions: Completions,
}

// SAFETY: the library is thread-safe, and what is changed here is atomic.
unsafe impl Send for RcEndpoint {}
// SAFETY: as above.
unsafe impl Sync for RcEndpoint {}

impl RcEndpoint {
    pub fn new(domain: Arc<Domain>, depths: Depths, posting: Posting) -> Result<RcEndpoint, VerbsError> {
        let (limits, context) = (domain.limits, &domain.context);
        for (what, depth) in [("work requests", depths.sends), ("receives", depths.receives)] {
            if depth > limits.queue_depth {
                let most = limits.queue_depth;
                return Err(context.limit(format!("a queue of {depth} {what}; it takes at most {most}")));
            }
        }
        let total = depths.sends.saturating_add(depths.receives).max(1);
        if total > limits.completions {
            let most = limits.completions;
            return Err(context.limit(format!("a queue of {total} completions; it takes at most {most}")));
        }
        let completions = Completions::new(domain.clone(), total)?;
        let (pair, calls, granted) = create(&domain, completions.queue(), depths, posting)?;
        // SAFETY: the queue pair was just made.
        let number = unsafe { pair.as_ref() }.qp_num;
        let failed = domain.loss.know(number, completions.queue() as usize);
        Ok(RcEndpoint { pair, number, inline: granted as usize, calls, failed, completions })
    }

    /// An error if nothing can come of it any more.
    fn alive(&self) -> Result<(), VerbsError> {
        self.domain().alive()?;
        match self.failed.load(Relaxed) {
            true => Err(VerbsError::PairFailed {
                device: self.domain().context.name.clone(),
                number: self.number,
            }),
            false => Ok(()),
        }
    }

    fn domain(&self) -> &Domain {
        &self.completions.domain
    }

    fn modify(&self, what: &'static str, attr: &mut ibv_qp_attr, mask: u32) -> Result<(), VerbsError> {
        let context = &self.domain().context;
        // SAFETY: the queue pair is there, the record is the header's.
        let status = unsafe {
            (context.functions.ibv_modify_qp)(self.pair.as_ptr(), attr, (mask | IBV_QP_STATE) as c_int)
        };
        context.check(what, status)
    }

    fn enter(&self, what: &'static str, state: u32) -> Result<(), VerbsError> {
        self.modify(what, &mut ibv_qp_attr { qp_state: state, ..ibv_qp_attr::zeroed() }, 0)
    }
}

/// Makes a queue pair; says how work is posted to it, and how many bytes fit into a request. Inline data is given up before it fails:
/// drivers differ in how they refuse it.
fn create(
    domain: &Domain,
    queue: *mut ibv_cq,
    depths: Depths,
    posting: Posting,
) -> Result<(NonNull<ibv_qp>, Option<Calls>, u32), VerbsError> {
    let sizes: &[u32] = if depths.inline > 0 { &[depths.inline, 0] } else { &[0] };
    if posting == Posting::Calls {
        for &inline in sizes {
            let Ok((pair, granted)) = create_for_calls(domain, queue, Depths { inline, ..depths }) else {
                continue;
            };
            // SAFETY: the queue pair was just made.
            let extended = unsafe { (domain.context.functions.ibv_qp_to_qp_ex)(pair.as_ptr()) };
            // SAFETY: `RcEndpoint` keeps both together.
            match unsafe { Calls::of(extended) } {
                Some(calls) => return Ok((pair, Some(calls), granted)),
                None => {
                    // SAFETY: nobody has it yet.
                    unsafe { (domain.context.functions.ibv_destroy_qp)(pair.as_ptr()) };
                    break;
                }
            }
        }
        tracing::debug!("{} has no ibv_wr_*: work is posted as lists", domain.context.name);
    }
    let mut error = io::Error::other("not tried");
    for &inline in sizes {
        match create_for_lists(domain, queue, Depths { inline, ..depths }) {
            Ok((pair, granted)) => return Ok((pair, None, granted)),
            Err(refused) => error = refused,
        }
    }
    Err(domain.context.failed(queue_verb("ibv_create_qp"), error))
}

fn capacity(depths: Depths) -> ibv_qp_cap {
    ibv_qp_cap {
        max_send_wr: depths.sends.max(1),
        max_recv_wr: depths.receives.max(1),
        max_send_sge: 1,
        max_recv_sge: 1,
        max_inline_data: depths.inline,
    }
}

fn create_for_calls(
    domain: &Domain,
    queue: *mut ibv_cq,
    depths: Depths,
) -> io::Result<(NonNull<ibv_qp>, u32)> {
    let mut attr = ibv_qp_init_attr_ex {
        send_cq: queue,
        recv_cq: queue,
        cap: capacity(depths),
        qp_type: IBV_QPT_RC,
        comp_mask: IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        pd: domain.raw.as_ptr(),
        send_ops_flags: IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_READ,
        ..ibv_qp_init_attr_ex::zeroed()
    };
    clear_errno();
    // SAFETY: context, domain and completion queue are there.
    let pair = unsafe { create_qp_ex(domain.context.raw.as_ptr(), &mut attr) };
    NonNull::new(pair).map(|pair| (pair, attr.cap.max_inline_data)).ok_or_else(errno)
}

fn create_for_lists(
    domain: &Domain,
    queue: *mut ibv_cq,
    depths: Depths,
) -> io::Result<(NonNull<ibv_qp>, u32)> {
    let mut attr = ibv_qp_init_attr {
        send_cq: queue,
        recv_cq: queue,
        cap: capacity(depths),
        qp_type: IBV_QPT_RC,
        ..ibv_qp_init_attr::zeroed()
    };
    clear_errno();
    // SAFETY: domain and completion queue are there.
    let pair = unsafe { (domain.context.functions.ibv_create_qp)(domain.raw.as_ptr(), &mut attr) };
    NonNull::new(pair).map(|pair| (pair, attr.cap.max_inline_data)).ok_or_else(errno)
}

/// The name of a verb that makes queues, for an error. Some devices have their queues in pinned memory of the process.
fn queue_verb(verb: &'static str) -> &'static str {
    match (memory::limit(), verb) {
        (None, verb) => verb,
        (Some(_), "ibv_create_cq") => {
            "ibv_create_cq (its memory can count against the limit of locked memory, `ulimit -l`)"
        }
        (Some(_), _) => {
            "ibv_create_qp (its memory can count against the limit of locked memory, `ulimit -l`)"
        }
    }
}

impl Endpoint for RcEndpoint {
    fn number(&self) -> u32 {
        self.number
    }

    fn inline(&self) -> usize {
        self.inline
    }

    fn init(&self, port: u8, pkey: u16, access: Access) -> Result<(), VerbsError> {
        let mut attr = ibv_qp_attr {
            qp_state: IBV_QPS_INIT,
            pkey_index: pkey,
            port_num: port,
            qp_access_flags: match access {
                Access::None => 0,
                Access::ReadWrite => IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE,
            },
            ..ibv_qp_attr::zeroed()
        };
        let mask = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
        self.modify("ibv_modify_qp to INIT", &mut attr, mask)
    }

    fn ready_to_receive(&self, path: &Path, peer: &PeerAddress) -> Result<(), VerbsError> {
        let context = &self.domain().context;
        let Some(mtu) = describe::mtu_code(path.mtu) else {
            return Err(
                context.limit(format!("a path MTU of {}: there are 256, 512, 1024, 2048 and 4096", path.mtu))
            );
        };
        let (own, grh_required) = match path.link {
            LinkLayer::Ethernet => (None, true),
            LinkLayer::InfiniBand => (
                describe::gid(context, path.port, path.gid_index).ok(),
                describe::port_attributes(context, path.port)?.flags & IBV_QPF_GRH_REQUIRED != 0,
            ),
        };
        let mut attr = ibv_qp_attr {
            qp_state: IBV_QPS_RTR,
            ah_attr: address::of(path, peer, own, grh_required),
            path_mtu: mtu,
            dest_qp_num: peer.number,
            rq_psn: peer.psn,
            max_dest_rd_atomic: peer.reads,
            min_rnr_timer: RNR_TIMER,
            ..ibv_qp_attr::zeroed()
        };
        let mask = IBV_QP_AV
            | IBV_QP_PATH_MTU
            | IBV_QP_DEST_QPN
            | IBV_QP_RQ_PSN
            | IBV_QP_MAX_DEST_RD_ATOMIC
            | IBV_QP_MIN_RNR_TIMER;
        self.modify("ibv_modify_qp to RTR", &mut attr, mask)
    }

    fn ready_to_send(&self, path: &Path, psn: u32) -> Result<(), VerbsError> {
        let mut attr = ibv_qp_attr {
            qp_state: IBV_QPS_RTS,
            timeout: path.timeout,
            retry_cnt: path.retries,
            rnr_retry: path.rnr_retries,
            sq_psn: psn,
            max_rd_atomic: path.reads,
            ..ibv_qp_attr::zeroed()
        };
        let mask =
            IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify("ibv_modify_qp to RTS", &mut attr, mask)
    }

    unsafe fn post_receives(&self, receives: &[Receive]) -> Result<(), VerbsError> {
        // SAFETY: by the caller.
        let status = unsafe { post::post_receives(self.pair, receives) };
        self.domain().context.check("ibv_post_recv", status)
    }

    unsafe fn post(&self, works: &[Work]) -> Result<(), VerbsError> {
        if works.is_empty() {
            return Ok(());
        }
        let (what, status) = match &self.calls {
            // SAFETY: by the caller.
            Some(calls) => ("ibv_wr_complete", unsafe { calls.post(works) }),
            // SAFETY: by the caller.
            None => ("ibv_post_send", unsafe { post::post_list(self.pair, works) }),
        };
        self.domain().context.check(what, status)
    }

    fn poll(&self, completions: &mut Vec<Completion>, at_most: usize) -> Result<(), VerbsError> {
        self.alive()?;
        self.completions.poll(completions, at_most)
    }

    fn arm(&self) -> Result<(), VerbsError> {
        self.completions.arm()
    }

    fn poll_event(&self, context: &mut Context<'_>) -> Poll<Result<(), VerbsError>> {
        let polled = self.completions.poll_event(context);
        if polled.is_pending() && self.domain().loss.watch(self.number, context.waker()) {
            return Poll::Ready(self.alive());
        }
        polled
    }
}

impl Drop for RcEndpoint {
    fn drop(&mut self) {
        self.domain().loss.forget(self.number);
        let context = &self.domain().context;
        // SAFETY: nobody else has it.
        let status = unsafe { (context.functions.ibv_destroy_qp)(self.pair.as_ptr()) };
        let Err(error) = context.check("ibv_destroy_qp", status) else { return };
        if self.domain().loss.happened() {
            // The kernel destroys what a device has before verbs on it begin to fail.
            return tracing::debug!("queue pair {} went with its device: {error}", self.number);
        }
        // The promise is that no device works on its behalf any more. State RESET has that too, and the rest ends with the context.
        match self.enter("ibv_modify_qp to RESET", IBV_QPS_RESET) {
            Ok(()) => tracing::warn!("queue pair {} is reset and left over: {error}", self.number),
            Err(reset) => tracing::error!("queue pair {} stays as it is: {error}; {reset}", self.number),
        }
    }
}
