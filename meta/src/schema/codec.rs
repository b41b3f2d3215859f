//! How values are stored: one format byte, then a protobuf message of this module's own structs.
//!
//! Why protobuf: a field that a newer release adds is skipped by an older one, which is what lets services be upgraded one after the
//! other on one store, and the rules for changing a message are widely known. Why a byte in front: an older service that *rewrites* a
//! value drops the fields it does not know. Where that would do harm the new release raises the byte, and older ones refuse the value
//! by name instead of damaging it. Values that are only ever replaced by atomic operations (counters, times, allocators) are bare
//! little-endian integers, because that is what the operations work on.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// The format that this release writes, and the newest that it may rewrite.
pub const FORMAT: u8 = 1;

/// A stored value that cannot be used. Never the client's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CorruptValue {
    /// Written by a release that this one must not overwrite.
    #[error(
        "{what} was written in format {format}, this release knows {FORMAT}: upgrade this metadata service"
    )]
    TooNew {
        /// Which kind of value.
        what: &'static str,
        /// The format byte found.
        format: u8,
    },
    /// Not a value of this kind at all.
    #[error("{what} is damaged ({reason}): restore the metadata store from a backup")]
    Damaged {
        /// Which kind of value.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// A stored message.
pub fn encode(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + message.encoded_len());
    out.put_u8(FORMAT);
    message.encode(&mut out).expect("the buffer is long enough");
    out.freeze()
}

/// The message of a stored value; `what` names the kind in errors.
pub fn decode<M: Message + Default>(what: &'static str, value: &[u8]) -> Result<M, CorruptValue> {
    match value.split_first() {
        None => Err(CorruptValue::Damaged { what, reason: "it is empty".into() }),
        Some((&format, _)) if format > FORMAT => Err(CorruptValue::TooNew { what, format }),
        Some((0, _)) => Err(CorruptValue::Damaged { what, reason: "its format byte is 0".into() }),
        Some((_, body)) => {
            M::decode(body).map_err(|error| CorruptValue::Damaged { what, reason: error.to_string() })
        }
    }
}

/// A little-endian integer as the store's `add` keeps it; absent is 0.
pub fn integer(what: &'static str, value: Option<&[u8]>) -> Result<i64, CorruptValue> {
    match value {
        None => Ok(0),
        Some(value) => value.try_into().map(i64::from_le_bytes).map_err(|_| CorruptValue::Damaged {
            what,
            reason: format!("{} bytes instead of 8", value.len()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Dirent;

    #[test]
    fn values_of_a_newer_format_are_refused_and_newer_fields_are_skipped() {
        let entry = Dirent { inode: 7, kind: 1 };
        let value = encode(&entry);
        assert_eq!(decode::<Dirent>("a directory entry", &value), Ok(entry.clone()));
        // Field 99, varint 5.
        let mut longer = value.to_vec();
        longer.extend([0x98, 0x06, 0x05]);
        assert_eq!(decode::<Dirent>("a directory entry", &longer), Ok(entry));
        let mut newer = value.to_vec();
        newer[0] = FORMAT + 1;
        let error = decode::<Dirent>("a directory entry", &newer).unwrap_err();
        assert!(matches!(error, CorruptValue::TooNew { format: 2, .. }), "{error}");
    }

    #[test]
    fn damage_is_an_error_not_a_panic() {
        for value in [&[][..], &[0][..], &[1, 0xff][..], &[1, 0x08][..]] {
            assert!(decode::<Dirent>("a directory entry", value).is_err());
        }
        assert!(integer("a counter", Some(&[1, 2, 3])).is_err());
        assert_eq!(integer("a counter", None), Ok(0));
    }
}
