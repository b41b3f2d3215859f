//! Posting work: call by call (`ibv_wr_*`) where the driver has that, else as a list (`ibv_post_send`).

use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};

use super::sys::*;
use crate::provider::{Local, Op, RECEIVED, Receive, Work};

/// How work is to be posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Posting {
    /// With `ibv_wr_*` where the driver has it: it writes each request straight into the device's queue.
    Calls,
    /// With `ibv_post_send`, which every driver has.
    Lists,
}

/// Requests of a list: what lies on the stack for it. A longer list is posted in pieces.
const LIST: usize = 16;

/// The functions of a queue pair that takes work call by call.
#[derive(Clone, Copy)]
pub struct Calls {
    pair: NonNull<ibv_qp_ex>,
    start: unsafe extern "C" fn(*mut ibv_qp_ex),
    complete: unsafe extern "C" fn(*mut ibv_qp_ex) -> c_int,
    send: unsafe extern "C" fn(*mut ibv_qp_ex),
    write: unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64),
    read: unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64),
    sge: unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32),
    inline: unsafe extern "C" fn(*mut ibv_qp_ex, *mut c_void, usize),
}

impl Calls {
    /// Of a queue pair, if its driver gave it all of them.
    ///
    /// # Safety
    /// The queue pair is there as long as this is used.
    pub unsafe fn of(pair: *mut ibv_qp_ex) -> Option<Calls> {
        let pair = NonNull::new(pair)?;
        // SAFETY: by the caller; drivers set these when the queue pair is made, and never later.
        let functions = unsafe { pair.as_ref() };
        Some(Calls {
            pair,
            start: functions.wr_start?,
            complete: functions.wr_complete?,
            send: functions.wr_send?,
            write: functions.wr_rdma_write?,
            read: functions.wr_rdma_read?,
            sge: functions.wr_set_sge?,
            inline: functions.wr_set_inline_data?,
        })
    }

    /// Posts work. Returns errno; then nothing of it was posted.
    ///
    /// # Safety
    /// As [`crate::Endpoint::post`].
    pub unsafe fn post(&self, works: &[Work]) -> c_int {
        let pair = self.pair.as_ptr();
        // SAFETY: the functions are the queue pair's own. From `start`, which takes the lock of its send queue, to `complete`, which
        // gives it back, no other thread gets in between, so the fields are ours too. The memory is as the caller says.
        unsafe {
            (self.start)(pair);
            for work in works {
                (*pair).wr_id = work.id;
                (*pair).wr_flags = flags(work);
                match work.op {
                    Op::Send => (self.send)(pair),
                    Op::Write(to) => (self.write)(pair, to.key, to.address),
                    Op::Read(from) => (self.read)(pair, from.key, from.address),
                }
                let Local { address, len, key } = work.local;
                // Without bytes too: some drivers finish a request only when they are told of its data.
                if work.inline {
                    (self.inline)(pair, address as *mut c_void, len as usize);
                } else {
                    (self.sge)(pair, key, address, len);
                }
            }
            (self.complete)(pair)
        }
    }
}

fn flags(work: &Work) -> u32 {
    let mut flags = 0;
    if work.signalled {
        flags |= IBV_SEND_SIGNALED;
    }
    if work.inline {
        flags |= IBV_SEND_INLINE;
    }
    flags
}

fn sge(local: &Local) -> ibv_sge {
    ibv_sge { addr: local.address, length: local.len, lkey: local.key }
}

/// Posts work as lists. Returns errno; then a beginning of it may have been posted.
///
/// # Safety
/// As [`crate::Endpoint::post`]; the queue pair is there.
pub unsafe fn post_list(pair: NonNull<ibv_qp>, works: &[Work]) -> c_int {
    let pair = pair.as_ptr();
    // SAFETY: an open context's functions.
    let Some(post) = (unsafe { (*(*pair).context).ops.post_send }) else { return libc::EOPNOTSUPP };
    for works in works.chunks(LIST) {
        let mut sges = [ibv_sge::zeroed(); LIST];
        let mut requests = [ibv_send_wr::zeroed(); LIST];
        for (at, work) in works.iter().enumerate() {
            sges[at] = sge(&work.local);
            let request = &mut requests[at];
            request.wr_id = work.id;
            request.num_sge = c_int::from(work.local.len > 0);
            request.send_flags = flags(work);
            (request.opcode, request.remote_addr, request.rkey) = match work.op {
                Op::Send => (IBV_WR_SEND, 0, 0),
                Op::Write(to) => (IBV_WR_RDMA_WRITE, to.address, to.key),
                Op::Read(from) => (IBV_WR_RDMA_READ, from.address, from.key),
            };
        }
        let first = requests.as_mut_ptr();
        for at in 0..works.len() {
            let last = at + 1 == works.len();
            requests[at].next = if last { null_mut() } else { first.wrapping_add(at + 1) };
            requests[at].sg_list = &raw mut sges[at];
        }
        let mut bad = null_mut();
        // SAFETY: a list that ends; the library takes what it says before it returns. The memory is as the caller says.
        let status = unsafe { post(pair, first, &mut bad) };
        if status != 0 {
            return status;
        }
    }
    0
}

/// Posts receives. Returns errno; then a beginning of them may have been posted.
///
/// # Safety
/// As [`crate::Endpoint::post_receives`]; the queue pair is there.
pub unsafe fn post_receives(pair: NonNull<ibv_qp>, receives: &[Receive]) -> c_int {
    let pair = pair.as_ptr();
    // SAFETY: an open context's functions.
    let Some(post) = (unsafe { (*(*pair).context).ops.post_recv }) else { return libc::EOPNOTSUPP };
    for receives in receives.chunks(LIST) {
        let mut sges = [ibv_sge::zeroed(); LIST];
        let mut requests = [ibv_recv_wr::zeroed(); LIST];
        let first = requests.as_mut_ptr();
        for (at, receive) in receives.iter().enumerate() {
            sges[at] = sge(&receive.local);
            let last = at + 1 == receives.len();
            requests[at] = ibv_recv_wr {
                wr_id: receive.id | RECEIVED,
                next: if last { null_mut() } else { first.wrapping_add(at + 1) },
                sg_list: &raw mut sges[at],
                num_sge: c_int::from(receive.local.len > 0),
            };
        }
        let mut bad = null_mut();
        // SAFETY: as in `post_list`.
        let status = unsafe { post(pair, first, &mut bad) };
        if status != 0 {
            return status;
        }
    }
    0
}
