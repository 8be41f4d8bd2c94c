//! MALFORMED.

use super::*;

#[test]
fn empty_and_oversized() {
    refused(b"", Malformed, "is empty");
    let bytes = good(1).extension(GREASE, &[0; 20 * 1024]).build();
    refused(&bytes, Malformed, &format!("has {} bytes, more than 20480", bytes.len()));
}

#[test]
fn every_truncation() {
    for package in [good(1).build(), mls_message(1, 5, &good(1).build())] {
        for len in 1..package.len() {
            assert_eq!(judge(&package[..len]).unwrap_err().reason, Malformed, "{len}");
        }
    }
}

#[test]
fn trailing_bytes() {
    let trailing = [&good(1).build()[..], b"\0"].concat();
    refused(&trailing, Malformed, "has trailing bytes");
    refused(&mls_message(1, 5, &trailing), Malformed, "has trailing bytes");
}

#[test]
fn mls_messages_that_wrap_no_key_package() {
    for wire_format in [1, 2, 3, 4, 6, GREASE] {
        let rejection = judge(&mls_message(1, wire_format, &good(1).build())).unwrap_err();
        assert_eq!(rejection.reason, Malformed, "{wire_format}");
    }
    let twice = mls_message(1, 5, &mls_message(1, 5, &good(1).build()));
    assert_eq!(judge(&twice).unwrap_err().reason, Malformed);
}

#[test]
fn an_mls_message_of_another_version_than_its_key_package() {
    let message = "the MLSMessage and its KeyPackage differ in version";
    refused(&mls_message(2, 5, &good(1).build()), Malformed, message);
}

#[test]
fn lengths_in_more_bytes_than_they_take() {
    let bytes = good(1).build();
    let long = [&bytes[..4], &[0x40, 32], &bytes[5..]].concat();
    refused(&long, Malformed, "a length is encoded in more bytes than it takes");
    let long = [&bytes[..4], &[0x80, 0, 0, 32], &bytes[5..]].concat();
    refused(&long, Malformed, "a length is encoded in more bytes than it takes");
    let reserved = [&bytes[..4], &[0xc0, 0, 0, 0, 0, 0, 0, 32], &bytes[5..]].concat();
    refused(&reserved, Malformed, "a length starts with the bits 11");
}

#[test]
fn two_extensions_of_one_type() {
    let message = "has two extensions of type 0x3a3a";
    let forge = good(1).extension(GREASE, b"1").extension(GREASE, b"2");
    refused(&forge.build(), Malformed, message);
    let forge = good(1).leaf_extension(GREASE, b"1").leaf_extension(GREASE, b"2");
    refused(&forge.build(), Malformed, message);
}

#[test]
fn an_extension_that_belongs_elsewhere() {
    for code in 1..=5_u16 {
        let message = format!(
            "extension type {code:#06x} does not belong into the extensions of a KeyPackage"
        );
        refused_forge(Malformed, &message, |it| it.extensions.push((code, Vec::new())));
    }
}

#[test]
fn an_application_id_that_does_not_parse() {
    refused_forge(Malformed, "an extension does not parse", |it| {
        it.leaf_extensions.push((1, b"\x04app".to_vec()));
    });
}

#[test]
fn last_resort_marks_with_data() {
    let forge = good(1).extension(LAST_RESORT, b"x");
    refused(&forge.build(), Malformed, "the last_resort extension carries data");
    let dictionary = app_data_dictionary(&[(4, b"x")]);
    let forge = good(1).extension(APP_DATA_DICTIONARY, &dictionary);
    let message = "the last_resort_key_package component carries data";
    refused(&forge.build(), Malformed, message);
}

#[test]
fn dictionaries_that_are_none() {
    let unreadable = "the app_data_dictionary does not parse";
    let order = "the app_data_dictionary is not in strictly ascending order";
    let twice = app_data_dictionary(&[(4, b""), (4, b"")]);
    let descending = app_data_dictionary(&[(5, b""), (4, b"")]);
    let trailing = [&app_data_dictionary(&[(4, b"")])[..], b"\0"].concat();
    for (dictionary, message) in [
        (&twice[..], order),
        (&descending, order),
        (&trailing, unreadable),
        (b"", unreadable),
        (b"\x03\0\x04\x01", unreadable),
    ] {
        let forge = good(1).extension(APP_DATA_DICTIONARY, dictionary);
        refused(&forge.build(), Malformed, message);
        let forge = good(1).leaf_extension(APP_DATA_DICTIONARY, dictionary);
        refused(&forge.build(), Malformed, message);
    }
}
