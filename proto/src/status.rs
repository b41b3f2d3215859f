//! The one table of wire statuses. Nobody matches on text: a status says by its [`RetryClass`] what the caller does next.

use std::fmt;

/// What a caller does about a status.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RetryClass {
    /// Nothing went wrong.
    Done,
    /// Send it again to the same place, now or after a short pause.
    Retry,
    /// Fetch newer routing information, choose again, then send again.
    Refresh,
    /// The service is overloaded or out of a resource that comes back: pause, growing, then send again.
    BackOff,
    /// Another replica may answer (reads only); otherwise give up.
    Elsewhere,
    /// Sending it again gives the same answer.
    GiveUp,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $class:ident, $errno:literal, $text:literal;)*) => {
        /// The outcome of a request, as it goes over the wire (u16).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u16)]
        pub enum Status {
            $($(#[$doc])* $name = $code,)*
        }
        impl Status {
            /// All of them, for tables and tests.
            pub const ALL: &'static [Status] = &[$(Status::$name),*];
            /// The wire code's meaning; an unknown code (from a newer peer) is [`Status::Internal`].
            pub fn from_code(code: u16) -> Status {
                match code { $($code => Status::$name,)* _ => Status::Internal }
            }
            /// What the caller does next.
            pub fn class(self) -> RetryClass {
                match self { $(Status::$name => RetryClass::$class,)* }
            }
            /// The `errno` (Linux, asm-generic) that a POSIX caller sees; 0 for success.
            pub fn errno(self) -> i32 {
                match self { $(Status::$name => $errno,)* }
            }
            /// A sentence for people.
            pub fn text(self) -> &'static str {
                match self { $(Status::$name => $text,)* }
            }
        }
    };
}

statuses! {
    /// Success.
    Ok = 0, Done, 0, "ok";

    /// The receiver has not yet adopted the chain version the request names (R1, receiver behind).
    NotYet = 1, Retry, 11, "the target has not adopted this chain version yet";
    /// The request names an older chain version than the receiver's (R1, sender behind).
    StaleRouting = 2, Refresh, 11, "the request's chain version is old";
    /// The target does not serve in its present state, or is not here.
    NotServing = 3, Refresh, 11, "the target does not serve this chain now";
    /// The service's lease ran out: it may have been replaced (R10, R13).
    NoLease = 4, Refresh, 11, "the service's lease ran out";
    /// The request was sent to a target that is not the chain's head.
    NotHead = 5, Refresh, 11, "writes go to the head of the chain";
    /// Out of a bounded resource (buffers, queue slots, reserve space downstream).
    Busy = 6, BackOff, 11, "overloaded; try again later";
    /// A forward left a gap behind the last staged version (R3).
    Gap = 7, Retry, 11, "versions are missing before this one";
    /// The write's sequence is below the one recorded for its channel (R21).
    StaleSequence = 8, GiveUp, 116, "a later write of this channel was already applied";

    /// No such chunk, file or directory entry.
    NotFound = 20, GiveUp, 2, "no such file or directory";
    /// The name is taken.
    Exists = 21, GiveUp, 17, "file exists";
    /// A path component is not a directory.
    NotDirectory = 22, GiveUp, 20, "not a directory";
    /// A file was expected.
    IsDirectory = 23, GiveUp, 21, "is a directory";
    /// The directory still has entries.
    NotEmpty = 24, GiveUp, 39, "directory not empty";
    /// Permission denied.
    AccessDenied = 25, GiveUp, 13, "permission denied";
    /// Only the owner or root may do this.
    NotPermitted = 26, GiveUp, 1, "operation not permitted";
    /// A name over 255 bytes or a path over 4096.
    NameTooLong = 27, GiveUp, 36, "file name too long";
    /// An argument outside what the call takes.
    Invalid = 28, GiveUp, 22, "invalid argument";
    /// A file offset or length beyond what can be stored.
    TooLarge = 29, GiveUp, 27, "file too large";
    /// Too many symbolic links on the way.
    Loop = 30, GiveUp, 40, "too many levels of symbolic links";
    /// Too many hard links.
    TooManyLinks = 31, GiveUp, 31, "too many links";
    /// No such extended attribute.
    NoAttribute = 32, GiveUp, 61, "no such attribute";
    /// The file handle's session is gone.
    StaleHandle = 33, GiveUp, 116, "stale file handle";
    /// The value does not fit in the caller's limit.
    Range = 34, GiveUp, 34, "value too large for the buffer";
    /// Crosses a boundary that a link or rename may not cross.
    CrossDevice = 35, GiveUp, 18, "cross-device link";
    /// The object has no such operation.
    Unsupported = 36, GiveUp, 95, "operation not supported";

    /// The disk is full.
    NoSpace = 50, GiveUp, 28, "no space left on the storage targets";
    /// Stored bytes do not match their checksum.
    Corrupt = 51, Elsewhere, 5, "stored data is corrupt on this replica";
    /// The disk failed; its targets are out of service.
    DiskFailed = 52, Elsewhere, 5, "the disk failed";
    /// Bytes were damaged on their way (checksum of the message's data).
    Damaged = 53, Retry, 5, "data arrived damaged";

    /// The peer speaks another protocol version.
    WrongProtocol = 70, GiveUp, 71, "protocol version not supported by the peer";
    /// The peer belongs to another cluster.
    WrongCluster = 71, GiveUp, 1, "the peer belongs to another cluster";
    /// The cluster token is missing or wrong.
    BadToken = 72, GiveUp, 13, "wrong cluster token";
    /// The message cannot be decoded.
    Malformed = 73, GiveUp, 71, "malformed message";
    /// No such method.
    UnknownMethod = 74, GiveUp, 38, "the peer does not know this request";
    /// The peer has no RDMA, or no port that reaches ours.
    NoRdma = 75, GiveUp, 93, "the peer does not offer RDMA";

    /// The deadline passed.
    TimedOut = 80, GiveUp, 110, "timed out";
    /// The connection broke; whether the request was carried out is not known.
    Disconnected = 81, Retry, 107, "connection lost";
    /// The service is stopping.
    ShuttingDown = 82, Refresh, 108, "the service is shutting down";
    /// No mgmtd answers as primary.
    NoPrimary = 83, Retry, 11, "no primary mgmtd answers";
    /// A transaction conflicted too often.
    Conflict = 84, Retry, 11, "conflicting transactions";
    /// A bug or an unknown code from a newer peer.
    Internal = 99, GiveUp, 5, "internal error; see the service's log";
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire_and_unknown_ones_are_internal_errors() {
        for &status in Status::ALL {
            assert_eq!(Status::from_code(status as u16), status);
        }
        assert_eq!(Status::from_code(0xffff), Status::Internal);
    }

    #[test]
    fn only_success_is_done_and_only_success_has_no_errno() {
        for &status in Status::ALL {
            assert_eq!(status.class() == RetryClass::Done, status == Status::Ok);
            assert_eq!(status.errno() == 0, status == Status::Ok);
        }
    }
}
