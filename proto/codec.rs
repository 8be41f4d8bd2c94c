use std::{any::TypeId, marker::PhantomData};

use prost::{
    Message,
    bytes::Buf as _,
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::v1;

/// How many fields a request may have, those of its targets included. No list of the contract takes
/// more than 1000 items, and an item of two bytes costs up to 48 once it is decoded.
pub const MAX_REQUEST_FIELDS: usize = 4096;

/// Encodes as [`ProstCodec`] does, but makes room for a message when there is one: tonic's 8 KiB
/// for each call would be nearly all that an idle stream costs.
pub(crate) struct MessageCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for MessageCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// The first room of a buffer, and when a stream with many messages ready flushes it: the latter
/// is tonic's.
fn buffer_settings() -> BufferSettings {
    BufferSettings::new(64, 32 * 1024)
}

impl<T, U> Codec for MessageCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = MessageEncoder<T>;
    type Decoder = MessageDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        MessageEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder(ProstCodec::<T, U>::raw_decoder(buffer_settings()))
    }
}

/// Decodes as [`ProstDecoder`] does, but refuses a request with far too many fields before it is
/// given memory.
pub(crate) struct MessageDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for MessageDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let kind = TypeId::of::<U>();
        let has_lists = [
            TypeId::of::<v1::UploadKeyPackagesRequest>(),
            TypeId::of::<v1::ReserveKeyPackagesRequest>(),
            TypeId::of::<v1::SpendKeyPackagesRequest>(),
            TypeId::of::<v1::ReleaseReservationsRequest>(),
            TypeId::of::<v1::RevokeKeyPackagesRequest>(),
        ]
        .contains(&kind);
        // The field with lists of its own.
        let targets = (kind == TypeId::of::<v1::ReserveKeyPackagesRequest>()).then_some(4);
        let mut left = MAX_REQUEST_FIELDS;
        if has_lists && !within(buf.chunk(), targets, &mut left) {
            return Err(Status::invalid_argument(format!(
                "must have at most {MAX_REQUEST_FIELDS} fields, those of its targets included"
            )));
        }
        self.0.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Counts the fields of a message, and those inside of the fields numbered `nested`. What does not
/// decode is for the decoder to refuse.
fn within(mut message: &[u8], nested: Option<u32>, left: &mut usize) -> bool {
    while let Ok((number, wire_type)) = decode_key(&mut message) {
        let Some(fewer) = left.checked_sub(1) else { return false };
        *left = fewer;
        let length = match wire_type {
            WireType::Varint => match decode_varint(&mut message) {
                Ok(_) => 0,
                Err(_) => return true,
            },
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => match decode_varint(&mut message).map(usize::try_from) {
                Ok(Ok(length)) => length,
                _ => return true,
            },
            WireType::StartGroup | WireType::EndGroup => 0,
        };
        let Some((content, rest)) = message.split_at_checked(length) else { return true };
        if nested == Some(number)
            && wire_type == WireType::LengthDelimited
            && !within(content, None, left)
        {
            return false;
        }
        message = rest;
    }
    true
}

pub(crate) struct MessageEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for MessageEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        item.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffer_settings()
    }
}
