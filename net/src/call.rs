//! A request and its reply as the caller sees them.

use std::time::Duration;

use bytes::Bytes;
use catena_buf::{Buf, IoBuf};
use catena_proto::status::Status;

use crate::error::NetError;
use crate::limits;

/// Bulk data that the server pulls.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The bytes.
    pub data: Buf,
    /// Byte within a 4 KiB page at which the receiver places the first one, so that the data can go to disk from where it arrived.
    /// Below 4096.
    pub align: u16,
}

/// A request.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub method: u16,
    /// The message.
    pub body: Bytes,
    /// From now on, credits included. The server is told what is left of it, and the call fails when it has passed.
    pub deadline: Duration,
    /// What the server may pull.
    pub data: Vec<Segment>,
    /// Where the server may push: segment `i` of the reply goes into buffer `i` from its alignment on. The buffer's length says where
    /// the room ends.
    pub into: Vec<IoBuf>,
    /// Byte of `into[i]` at which its data begins, below 4096. Empty stands for 0 everywhere.
    pub into_align: Vec<u16>,
}

impl Default for Call {
    /// A request without a method, body or data, and 10 seconds of time.
    fn default() -> Call {
        Call {
            method: 0,
            body: Bytes::new(),
            deadline: Duration::from_secs(10),
            data: Vec::new(),
            into: Vec::new(),
            into_align: Vec::new(),
        }
    }
}

impl Call {
    /// A request without bulk data.
    pub fn new(method: u16, body: impl Into<Bytes>, deadline: Duration) -> Call {
        Call { method, body: body.into(), deadline, ..Call::default() }
    }

    /// Bytes that the server may pull.
    pub fn data_len(&self) -> usize {
        self.data.iter().map(|segment| segment.data.len()).sum()
    }

    pub(crate) fn align(&self, at: usize) -> usize {
        self.into_align.get(at).copied().unwrap_or_default().into()
    }

    /// Whether it keeps to [`limits`] and makes sense.
    pub(crate) fn check(&self) -> Result<(), NetError> {
        let page = catena_buf::PAGE;
        let invalid = |what: String| Err(NetError::Invalid(what));
        if self.body.len() > limits::BODY {
            return invalid(format!("a body of {} bytes, at most {}", self.body.len(), limits::BODY));
        }
        let segments = self.data.len().max(self.into.len());
        if segments > limits::SEGMENTS {
            return invalid(format!("{segments} segments, at most {}", limits::SEGMENTS));
        }
        let bytes = self.data_len().max(self.into.iter().map(|buf| buf.len()).sum());
        if bytes > limits::BULK {
            return invalid(format!("{bytes} bytes of bulk data, at most {}; split the call", limits::BULK));
        }
        if let Some(segment) = self.data.iter().find(|segment| {
            usize::from(segment.align) >= page
                || usize::from(segment.align) + segment.data.len() > catena_buf::MAX_BUF
        }) {
            let (len, align) = (segment.data.len(), segment.align);
            return invalid(format!(
                "a segment of {len} bytes at {align} fits no buffer of {}",
                catena_buf::MAX_BUF
            ));
        }
        if !self.into_align.is_empty() && self.into_align.len() != self.into.len() {
            return invalid(format!("{} alignments for {} buffers", self.into_align.len(), self.into.len()));
        }
        if let Some(at) =
            (0..self.into.len()).find(|&at| self.align(at) >= page || self.align(at) > self.into[at].len())
        {
            return invalid(format!("data at {} of a buffer of {}", self.align(at), self.into[at].len()));
        }
        Ok(())
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// How it went.
    pub status: Status,
    /// The message.
    pub body: Bytes,
    /// The buffers of [`Call::into`], each with its alignment + what was pushed into it as its length.
    pub data: Vec<IoBuf>,
}
