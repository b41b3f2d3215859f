//! Values of `catena-kv` as messages and back. What comes from a client is copied: a key that shared its request's buffer would keep
//! all of it in memory for as long as the conflict window remembers the key.

use bytes::Bytes;
use catena_kv::local::{Commit, Mutation, Span, Spans};
use catena_kv::{Atomic, KvError, VERSIONSTAMP_LEN, Versionstamp};
use catena_proto::pb::*;

/// An error as a message.
pub(crate) fn failure(error: KvError) -> KvFailure {
    let with = |code: KvCode| KvFailure { code: code as i32, ..Default::default() };
    let text = |code, message| KvFailure { message, ..with(code) };
    let size = |code, size: usize| KvFailure { number: size as u64, ..with(code) };
    match error {
        KvError::Conflict => with(KvCode::Conflict),
        KvError::TooOld => with(KvCode::TooOld),
        KvError::CommitUnknown => with(KvCode::CommitUnknown),
        KvError::Unavailable(why) => text(KvCode::Unavailable, why),
        KvError::TimedOut => with(KvCode::TimedOut),
        KvError::Cancelled => with(KvCode::Cancelled),
        KvError::Used => with(KvCode::Used),
        KvError::TransactionTooLarge(bytes) => size(KvCode::TransactionTooLarge, bytes),
        KvError::KeyTooLarge(bytes) => size(KvCode::KeyTooLarge, bytes),
        KvError::ValueTooLarge(bytes) => size(KvCode::ValueTooLarge, bytes),
        KvError::KeyOutsideRange => with(KvCode::KeyOutsideRange),
        KvError::InvertedRange => with(KvCode::InvertedRange),
        KvError::BadVersionstampOffset { offset, length } => {
            KvFailure { length: length as u64, ..size(KvCode::BadVersionstampOffset, offset) }
        }
        KvError::Unreadable => with(KvCode::Unreadable),
        KvError::Storage(why) => text(KvCode::Storage, why),
        KvError::Backend { code, message } => {
            KvFailure { number: u64::from(code as u32), ..text(KvCode::Backend, message) }
        }
        // An error that this release's messages have no code for.
        other => KvFailure { number: u64::MAX, ..text(KvCode::Backend, other.to_string()) },
    }
}

/// An error that was a message.
pub(crate) fn error(failure: KvFailure) -> KvError {
    let number = failure.number as usize;
    match failure.code() {
        KvCode::Conflict => KvError::Conflict,
        KvCode::TooOld => KvError::TooOld,
        KvCode::CommitUnknown => KvError::CommitUnknown,
        KvCode::Unavailable => KvError::Unavailable(failure.message),
        KvCode::TimedOut => KvError::TimedOut,
        KvCode::Cancelled => KvError::Cancelled,
        KvCode::Used => KvError::Used,
        KvCode::TransactionTooLarge => KvError::TransactionTooLarge(number),
        KvCode::KeyTooLarge => KvError::KeyTooLarge(number),
        KvCode::ValueTooLarge => KvError::ValueTooLarge(number),
        KvCode::KeyOutsideRange => KvError::KeyOutsideRange,
        KvCode::InvertedRange => KvError::InvertedRange,
        KvCode::BadVersionstampOffset => {
            KvError::BadVersionstampOffset { offset: number, length: failure.length as usize }
        }
        KvCode::Unreadable => KvError::Unreadable,
        KvCode::Storage => KvError::Storage(failure.message),
        KvCode::Backend => KvError::Backend { code: failure.number as u32 as i32, message: failure.message },
        // Of a newer release, or none at all.
        KvCode::Unspecified => KvError::Backend {
            code: -1,
            message: format!("the key-value service answered with an unknown code {}", failure.code),
        },
    }
}

/// A reply that says neither what was asked nor why not.
pub(crate) fn malformed(what: &str) -> KvError {
    KvError::Backend { code: -1, message: format!("the key-value service answered without {what}") }
}

/// A commit as a message.
pub(crate) fn commit_request(commit: Commit, read: Option<KvVersion>) -> KvCommitRequest {
    let spans = |spans: &Spans| spans.iter().map(span_message).collect();
    KvCommitRequest {
        read,
        reads: spans(&commit.reads),
        writes: spans(&commit.writes),
        mutations: commit.mutations.into_iter().map(mutation_message).collect(),
    }
}

/// The commit that was a message, without its read version. Its values are not checked yet: see [`Commit::validate`].
pub(crate) fn commit(request: &KvCommitRequest) -> Result<Commit, KvError> {
    let mut commit = Commit::default();
    request.reads.iter().for_each(|message| commit.reads.push(span(message)));
    request.writes.iter().for_each(|message| commit.writes.push(span(message)));
    commit.mutations = request.mutations.iter().map(mutation).collect::<Result<_, _>>()?;
    Ok(commit)
}

/// A versionstamp that was a message.
pub(crate) fn stamp(bytes: &[u8]) -> Result<Versionstamp, KvError> {
    let stamp: [u8; VERSIONSTAMP_LEN] = bytes.try_into().map_err(|_| malformed("a versionstamp"))?;
    Ok(Versionstamp(stamp))
}

fn span_message(span: &Span) -> KvSpan {
    match span {
        Span::Key(key) => KvSpan { begin: key.clone(), end: None },
        Span::Range(begin, end) => KvSpan { begin: begin.clone(), end: Some(end.clone()) },
    }
}

fn span(message: &KvSpan) -> Span {
    let begin = Bytes::copy_from_slice(&message.begin);
    match &message.end {
        None => Span::Key(begin),
        Some(end) => Span::Range(begin, Bytes::copy_from_slice(end)),
    }
}

const ATOMICS: [(Atomic, KvOp); 10] = [
    (Atomic::Add, KvOp::Add),
    (Atomic::BitAnd, KvOp::BitAnd),
    (Atomic::BitOr, KvOp::BitOr),
    (Atomic::BitXor, KvOp::BitXor),
    (Atomic::Max, KvOp::Max),
    (Atomic::Min, KvOp::Min),
    (Atomic::ByteMax, KvOp::ByteMax),
    (Atomic::ByteMin, KvOp::ByteMin),
    (Atomic::AppendIfFits, KvOp::AppendIfFits),
    (Atomic::CompareAndClear, KvOp::CompareAndClear),
];

fn mutation_message(mutation: Mutation) -> KvMutation {
    let message = |op: KvOp, key, value, offset: usize| KvMutation {
        op: op as i32,
        key,
        value,
        // Below the length of a value, which is below 2^32.
        offset: offset as u32,
    };
    match mutation {
        Mutation::Set(key, value) => message(KvOp::Set, key, value, 0),
        Mutation::Clear(key) => message(KvOp::Clear, key, Bytes::new(), 0),
        Mutation::ClearRange(begin, end) => message(KvOp::ClearRange, begin, end, 0),
        Mutation::StampedKey(key, offset, value) => message(KvOp::StampedKey, key, value, offset),
        Mutation::StampedValue(key, value, offset) => message(KvOp::StampedValue, key, value, offset),
        Mutation::Atomic(key, atomic, operand) => {
            let op = ATOMICS.iter().find(|(known, _)| *known == atomic).map(|(_, op)| *op);
            message(op.expect("the table has every atomic operation"), key, operand, 0)
        }
    }
}

fn mutation(message: &KvMutation) -> Result<Mutation, KvError> {
    let (key, value) = (Bytes::copy_from_slice(&message.key), Bytes::copy_from_slice(&message.value));
    let offset = message.offset as usize;
    Ok(match message.op() {
        KvOp::Set => Mutation::Set(key, value),
        KvOp::Clear => Mutation::Clear(key),
        KvOp::ClearRange => Mutation::ClearRange(key, value),
        KvOp::StampedKey => Mutation::StampedKey(key, offset, value),
        KvOp::StampedValue => Mutation::StampedValue(key, value, offset),
        op => match ATOMICS.iter().find(|(_, known)| *known == op) {
            Some((atomic, _)) => Mutation::Atomic(key, *atomic, value),
            None => {
                let message =
                    format!("mutation {} is unknown here; run the same release on both ends", message.op);
                return Err(KvError::Backend { code: -1, message });
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        let text = || "why".to_owned();
        for sent in [
            KvError::Conflict,
            KvError::TooOld,
            KvError::CommitUnknown,
            KvError::Unavailable(text()),
            KvError::TimedOut,
            KvError::Cancelled,
            KvError::Used,
            KvError::TransactionTooLarge(1),
            KvError::KeyTooLarge(2),
            KvError::ValueTooLarge(3),
            KvError::KeyOutsideRange,
            KvError::InvertedRange,
            KvError::BadVersionstampOffset { offset: 4, length: 5 },
            KvError::Unreadable,
            KvError::Storage(text()),
            KvError::Backend { code: -6, message: text() },
        ] {
            assert_eq!(error(failure(sent.clone())), sent);
        }
        assert!(!error(KvFailure { code: 9999, ..Default::default() }).retryable());
    }

    #[test]
    fn every_mutation_survives_the_wire() {
        let bytes = Bytes::from_static;
        let mut sent = vec![
            Mutation::Set(bytes(b"a"), bytes(b"1")),
            Mutation::Clear(bytes(b"b")),
            Mutation::ClearRange(bytes(b"c"), bytes(b"d")),
            Mutation::StampedKey(bytes(b"e.........."), 1, bytes(b"2")),
            Mutation::StampedValue(bytes(b"f"), bytes(b"..........3"), 0),
        ];
        sent.extend(ATOMICS.map(|(atomic, _)| Mutation::Atomic(bytes(b"g"), atomic, bytes(b"4"))));
        let request = commit_request(Commit { mutations: sent.clone(), ..Commit::default() }, None);
        assert_eq!(commit(&request).unwrap().mutations, sent);
        let unknown = KvMutation { op: 9999, ..Default::default() };
        let request = KvCommitRequest { mutations: vec![unknown], ..Default::default() };
        assert!(!commit(&request).unwrap_err().retryable());
    }
}
