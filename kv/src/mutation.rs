//! What a transaction does to the data when it commits, in order.

use bytes::{Bytes, BytesMut};

use crate::database::Versionstamp;

/// A change of a value that does not read it (FoundationDB's `MutationType`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtomicOp {
    /// Little-endian addition, wrapping, in the operand's length.
    Add,
    /// The larger, little-endian unsigned, in the operand's length.
    Max,
    /// The smaller, little-endian unsigned, in the operand's length; an absent value becomes the operand.
    Min,
    /// The larger in byte order.
    ByteMax,
    /// The smaller in byte order; an absent value becomes the operand.
    ByteMin,
    /// Bitwise or.
    BitOr,
    /// Bitwise and; an absent value becomes the operand.
    BitAnd,
    /// Removes the key if its value is the operand.
    CompareAndClear,
}

impl AtomicOp {
    /// The new value.
    pub fn apply(self, value: Option<&[u8]>, operand: &[u8]) -> Option<Bytes> {
        // The value, cut or zero-filled to the operand's length.
        let padded = |value: &[u8]| {
            let mut out = vec![0; operand.len()];
            let len = value.len().min(operand.len());
            out[..len].copy_from_slice(&value[..len]);
            out
        };
        let operand_bytes = || Bytes::copy_from_slice(operand);
        let larger = |a: &[u8], b: &[u8]| a.iter().rev().cmp(b.iter().rev()).is_ge();
        Some(match (self, value) {
            (AtomicOp::CompareAndClear, Some(value)) if value == operand => return None,
            (AtomicOp::CompareAndClear, value) => return value.map(Bytes::copy_from_slice),
            (_, None) => operand_bytes(),
            (AtomicOp::Add, Some(value)) => {
                let mut carry = 0;
                let value = padded(value);
                let sum = value.iter().zip(operand).map(|(&a, &b)| {
                    let digit = u16::from(a) + u16::from(b) + carry;
                    carry = digit >> 8;
                    digit as u8
                });
                sum.collect()
            }
            (AtomicOp::Max, Some(value)) => {
                let value = padded(value);
                if larger(&value, operand) { value.into() } else { operand_bytes() }
            }
            (AtomicOp::Min, Some(value)) => {
                let value = padded(value);
                if larger(operand, &value) { value.into() } else { operand_bytes() }
            }
            (AtomicOp::ByteMax, Some(value)) => Bytes::copy_from_slice(value.max(operand)),
            (AtomicOp::ByteMin, Some(value)) => Bytes::copy_from_slice(value.min(operand)),
            (AtomicOp::BitOr, Some(value)) => padded(value).iter().zip(operand).map(|(a, b)| a | b).collect(),
            (AtomicOp::BitAnd, Some(value)) => {
                padded(value).iter().zip(operand).map(|(a, b)| a & b).collect()
            }
        })
    }
}

/// A write with a versionstamp in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Versionstamped {
    /// Ten bytes of the key at `offset` become the versionstamp.
    Key {
        /// The key with a placeholder.
        key: Bytes,
        /// Where the placeholder is.
        offset: usize,
        /// The value.
        value: Bytes,
    },
    /// Ten bytes of the value at `offset` become the versionstamp.
    Value {
        /// The key.
        key: Bytes,
        /// The value with a placeholder.
        value: Bytes,
        /// Where the placeholder is.
        offset: usize,
    },
}

/// One step of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Write.
    Set(Bytes, Bytes),
    /// Remove.
    Clear(Bytes),
    /// Remove a range.
    ClearRange(Bytes, Bytes),
    /// Change.
    Atomic(AtomicOp, Bytes, Bytes),
    /// Write with the versionstamp filled in.
    Versionstamped(Versionstamped),
}

impl Versionstamped {
    /// The key and value to write.
    pub fn stamp(&self, stamp: Versionstamp) -> (Bytes, Bytes) {
        let fill = |bytes: &Bytes, offset: usize| {
            let mut out = BytesMut::from(&bytes[..]);
            out[offset..offset + 10].copy_from_slice(&stamp.0);
            out.freeze()
        };
        match self {
            Versionstamped::Key { key, offset, value } => (fill(key, *offset), value.clone()),
            Versionstamped::Value { key, value, offset } => (key.clone(), fill(value, *offset)),
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        let (len, offset) = match self {
            Versionstamped::Key { key, offset, .. } => (key.len(), *offset),
            Versionstamped::Value { value, offset, .. } => (value.len(), *offset),
        };
        offset.checked_add(10).is_some_and(|end| end <= len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_operations_are_foundationdbs() {
        type Case = (AtomicOp, Option<&'static [u8]>, &'static [u8], Option<&'static [u8]>);
        let cases: &[Case] = &[
            (AtomicOp::Add, None, &[1, 0], Some(&[1, 0])),
            (AtomicOp::Add, Some(&[255, 0]), &[1, 0], Some(&[0, 1])),
            (AtomicOp::Add, Some(&[255, 255]), &[1, 0], Some(&[0, 0])),
            (AtomicOp::Add, Some(&[1]), &[1, 1], Some(&[2, 1])),
            (AtomicOp::Add, Some(&[1, 9, 9]), &[1], Some(&[2])),
            (AtomicOp::Max, Some(&[0, 1]), &[255, 0], Some(&[0, 1])),
            (AtomicOp::Max, Some(&[7]), &[9, 0], Some(&[9, 0])),
            (AtomicOp::Min, Some(&[0, 1]), &[255, 0], Some(&[255, 0])),
            (AtomicOp::Min, None, &[5], Some(&[5])),
            (AtomicOp::ByteMax, Some(b"b"), b"az", Some(b"b")),
            (AtomicOp::ByteMin, Some(b"b"), b"az", Some(b"az")),
            (AtomicOp::BitOr, Some(&[1]), &[2], Some(&[3])),
            (AtomicOp::BitAnd, Some(&[3]), &[2], Some(&[2])),
            (AtomicOp::CompareAndClear, Some(b"x"), b"x", None),
            (AtomicOp::CompareAndClear, Some(b"x"), b"y", Some(b"x")),
            (AtomicOp::CompareAndClear, None, b"y", None),
        ];
        for (op, value, operand, expected) in cases {
            assert_eq!(op.apply(*value, operand).as_deref(), *expected, "{op:?} {value:?} {operand:?}");
        }
    }
}
