//! Reflection, so that a client nobody here wrote can call without the proto files.

use std::collections::HashSet;

use keypool_testing::server::SERVICE;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tokio_stream::{StreamExt as _, once};

use super::*;

/// Asks one version of the protocol, whose generated modules are alike in all but their name.
macro_rules! reflection {
    ($name:ident, $version:ident) => {
        mod $name {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };

            use super::*;

            async fn ask(server: &Server, question: MessageRequest) -> MessageResponse {
                let mut client = ServerReflectionClient::new(server.channel().await);
                let request = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(question),
                };
                let answers = client.server_reflection_info(once(request)).await.unwrap();
                let answer = answers.into_inner().next().await.unwrap().unwrap();
                answer.message_response.unwrap()
            }

            #[tokio::test]
            async fn lists_the_services_and_describes_them() {
                let database = database().await;
                let server = Server::start(&database, &options()).await;
                let answer = ask(&server, MessageRequest::ListServices(String::new())).await;
                let MessageResponse::ListServicesResponse(list) = answer else {
                    panic!("{answer:?}");
                };
                let names: HashSet<String> =
                    list.service.into_iter().map(|service| service.name).collect();
                assert!(names.contains(SERVICE), "{names:?}");
                assert!(names.contains("grpc.health.v1.Health"), "{names:?}");

                check_contract(async |symbol: &str| {
                    let question = MessageRequest::FileContainingSymbol(symbol.into());
                    match ask(&server, question).await {
                        MessageResponse::FileDescriptorResponse(files) => files
                            .file_descriptor_proto
                            .iter()
                            .map(|file| FileDescriptorProto::decode(&**file).unwrap())
                            .collect(),
                        other => panic!("{symbol}: {other:?}"),
                    }
                })
                .await;
            }
        }
    };
}

reflection!(version_1, v1);
reflection!(version_1_alpha, v1alpha);

/// The service can be found, with its comments, and every message and enum it needs.
async fn check_contract(files_with: impl AsyncFn(&str) -> Vec<FileDescriptorProto>) {
    let files = files_with(SERVICE).await;
    let file = files.iter().find(|file| !file.service.is_empty()).unwrap();
    let service = &file.service[0];
    assert_eq!(service.name(), "KeyPackageService");
    let comments: Vec<&[i32]> = file
        .source_code_info
        .iter()
        .flat_map(|info| &info.location)
        .filter(|location| !location.leading_comments().trim().is_empty())
        .map(|location| &*location.path)
        .collect();
    for (number, method) in (0..).zip(&service.method) {
        // FileDescriptorProto.service = 6, ServiceDescriptorProto.method = 2.
        assert!(comments.contains(&&[6, 0, 2, number][..]), "{} has a comment", method.name());
    }

    let mut open: Vec<String> = service
        .method
        .iter()
        .flat_map(|method| [method.input_type().to_owned(), method.output_type().to_owned()])
        .collect();
    let mut seen = HashSet::new();
    while let Some(name) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let name = name.trim_start_matches('.');
        let files = files_with(name).await;
        let (package, short) = name.rsplit_once('.').unwrap();
        let file = files.iter().find(|file| {
            let messages = file.message_type.iter().map(|it| it.name());
            let enums = file.enum_type.iter().map(|it| it.name());
            file.package() == package && messages.chain(enums).any(|it| it == short)
        });
        let file = file.unwrap_or_else(|| panic!("{name} is not in its file"));
        let message = file.message_type.iter().find(|it| it.name() == short);
        let fields = message.into_iter().flat_map(|message| &message.field);
        open.extend(fields.filter_map(|field| field.type_name.clone()));
    }
    assert!(seen.contains(".keypool.v1.RejectReason"), "{seen:?}");
    assert!(seen.contains(".google.protobuf.Timestamp"), "{seen:?}");
}
