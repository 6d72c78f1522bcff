//! A device acts only on what its controller signed.

use offramp_proto::{Desired, Digest, Reported, SigningKey, VerifyError};

use crate::sample;

fn key() -> SigningKey {
    SigningKey::from_seed(&[9; 32])
}

#[test]
fn a_signed_desired_state_is_read_back() {
    let bytes = key().sign(&sample::desired()).unwrap();
    assert_eq!(key().public().verify::<Desired>(&bytes).unwrap(), sample::desired());
}

#[test]
fn an_altered_desired_state_is_refused_whichever_bit_is_flipped() {
    let bytes = key().sign(&sample::desired()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(key().public().verify::<Desired>(&altered).is_err(), "bit {bit}");
    }
}

#[test]
fn an_unsigned_desired_state_is_refused() {
    let bytes = offramp_proto::encode(&sample::desired()).unwrap();
    assert!(matches!(
        key().public().verify::<Desired>(&bytes),
        Err(VerifyError::NotSigned(_))
    ));
}

#[test]
fn another_key_is_refused() {
    let bytes = SigningKey::from_seed(&[1; 32]).sign(&sample::desired()).unwrap();
    assert_eq!(key().public().verify::<Desired>(&bytes), Err(VerifyError::Signature));
}

#[test]
fn one_signed_message_is_not_taken_for_another() {
    let bytes = key().sign(&sample::reported()).unwrap();
    assert!(key().public().verify::<Reported>(&bytes).is_ok());
    assert_eq!(key().public().verify::<Desired>(&bytes), Err(VerifyError::Signature));
}

#[test]
fn an_oversized_message_is_refused_before_it_is_decoded() {
    let bytes = vec![0; offramp_proto::MAX_MESSAGE + 1];
    assert_eq!(
        key().public().verify::<Desired>(&bytes),
        Err(VerifyError::TooLarge(bytes.len()))
    );
}

#[test]
fn a_digest_is_written_and_read_as_hex() {
    let digest = Digest::of(b"");
    assert_eq!(
        digest.to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(digest.to_string().parse(), Ok(digest));
    assert_eq!(digest.short(), "e3b0c442");
    assert!("é".repeat(32).parse::<Digest>().is_err());
}
