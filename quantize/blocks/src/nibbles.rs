//! How the blocks of 32 pack levels of four and five bits; knows no single format.

/// Four bits each: byte `i` holds level `i` in its low half and level `i + 16` in its high half. Higher bits are cut.
pub(crate) fn pack_4_bit(levels: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|index| (levels[index] & 0xf) | (levels[index + 16] & 0xf) << 4)
}

/// Undoes [`pack_4_bit`].
pub(crate) fn unpack_4_bit(packed: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|index| packed[index % 16] >> (index / 16 * 4) & 0xf)
}

/// The fifth bits: bit `i` of a little-endian 32-bit number belongs to level `i`.
pub(crate) fn pack_fifth_bits(levels: &[u8; 32]) -> [u8; 4] {
    let high = levels.iter().enumerate().fold(0u32, |high, (index, &it)| high | u32::from(it >> 4 & 1) << index);
    high.to_le_bytes()
}

/// Undoes [`pack_4_bit`] and [`pack_fifth_bits`].
pub(crate) fn unpack_5_bit(low: &[u8; 16], high: &[u8; 4]) -> [u8; 32] {
    let (low, high) = (unpack_4_bit(low), u32::from_le_bytes(*high));
    std::array::from_fn(|index| low[index] | ((high >> index & 1) as u8) << 4)
}
