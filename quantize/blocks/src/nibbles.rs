//! How the blocks of 32 pack levels of four and five bits; knows no single format.

/// Four bits each: byte `i` holds level `i` in its low half and level `i + 16` in its high half. Higher bits are cut.
pub(crate) fn pack_4_bit(levels: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|index| (levels[index] & 0xf) | (levels[index + 16] & 0xf) << 4)
}

/// Undoes [`pack_4_bit`].
pub(crate) fn unpack_4_bit(packed: &[u8; 16]) -> [u8; 32] {
    let mut levels = [0; 32];
    let (low, high) = levels.split_at_mut(16);
    for ((low, high), packed) in low.iter_mut().zip(high).zip(packed) {
        (*low, *high) = (packed & 0xf, packed >> 4);
    }
    levels
}

/// The fifth bits: bit `i` of a little-endian 32-bit number belongs to level `i`.
pub(crate) fn pack_fifth_bits(levels: &[u8; 32]) -> [u8; 4] {
    let high = levels.iter().enumerate().fold(0u32, |high, (index, &it)| high | u32::from(it >> 4 & 1) << index);
    high.to_le_bytes()
}

/// Undoes [`pack_4_bit`] and [`pack_fifth_bits`].
pub(crate) fn unpack_5_bit(low: &[u8; 16], high: &[u8; 4]) -> [u8; 32] {
    let mut levels = unpack_4_bit(low);
    for (levels, bits) in levels.as_chunks_mut::<8>().0.iter_mut().zip(high) {
        // Eight copies, of which each keeps its own bit, which then carries into the bit above all of them.
        let each = (u64::from(*bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let fifth = ((each + 0x7f7f_7f7f_7f7f_7f7f) & 0x8080_8080_8080_8080) >> 3;
        *levels = (u64::from_le_bytes(*levels) | fifth).to_le_bytes();
    }
    levels
}
