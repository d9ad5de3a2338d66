{
  lib,
  protobuf,
  rustPlatform,
}:
rustPlatform.buildRustPackage {
  pname = "blixard";
  inherit ((lib.importTOML ./Cargo.toml).workspace.package) version;

  src = lib.fileset.toSource {
    root = ./.;
    fileset = lib.fileset.unions [
      ./Cargo.toml
      ./Cargo.lock
      ./agent
    ];
  };
  cargoLock.lockFile = ./Cargo.lock;

  # raft's own messages are compiled by protoc.
  nativeBuildInputs = [ protobuf ];

  # The tests want the whole repository; tests/all runs them.
  doCheck = false;

  meta = {
    description = "Runs the microVMs that a Nix flake declares on a cluster of NixOS hosts, each exactly once";
    homepage = "https://github.com/blixard/blixard";
    license = with lib.licenses; [
      mit
      asl20
    ];
    mainProgram = "blixard";
    platforms = lib.platforms.linux;
  };
}
