{
  description = "Declare microVMs in your flake; a cluster of NixOS hosts runs each exactly once";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    microvm.url = "github:microvm-nix/microvm.nix";
    microvm.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      microvm,
    }:
    let
      inherit (nixpkgs) lib;
      eachSystem =
        f:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: f nixpkgs.legacyPackages.${system});
      tests =
        pkgs:
        import ./tests/lib {
          inherit lib pkgs;
          module = self.nixosModules.default;
          mkManifest = { modules }: self.lib.mkManifest { inherit pkgs modules; };
        };
    in
    {
      packages = eachSystem (pkgs: {
        default = self.packages.${pkgs.stdenv.hostPlatform.system}.blixard;
        blixard = pkgs.callPackage ./package.nix { };
      });

      nixosModules = {
        default = self.nixosModules.blixard;
        blixard =
          { pkgs, ... }:
          {
            imports = [ ./modules ];
            services.blixard = {
              package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.blixard;
              microvm = lib.mkDefault microvm.outPath;
            };
          };
      };

      # { pkgs, modules } → the manifest of the VMs that the modules declare, evaluated once for all hosts.
      lib.mkManifest =
        { pkgs, modules }:
        import ./modules/mk-manifest.nix
          {
            inherit lib;
            microvm = microvm.outPath;
          }
          {
            inherit pkgs modules;
            package = self.packages.${pkgs.stdenv.hostPlatform.system}.blixard;
          };

      nixosConfigurations = import ./hosts {
        inherit lib;
        blixard = self;
      };

      checks = eachSystem (
        pkgs:
        (tests pkgs).checks
        // {
          package = self.packages.${pkgs.stdenv.hostPlatform.system}.blixard;
          refusals = pkgs.callPackage ./tests/lib/refusals.nix { microvm = microvm.outPath; };
          format = pkgs.callPackage ./tests/lib/format.nix { };
          one-manifest = pkgs.callPackage ./tests/lib/one-manifest.nix {
            hosts = self.nixosConfigurations;
          };
        }
      );

      formatter = eachSystem (
        pkgs:
        pkgs.writeShellApplication {
          name = "format";
          runtimeInputs = [
            pkgs.cargo
            pkgs.nixfmt
            pkgs.rustfmt
          ];
          text = ''
            git ls-files -z '*.nix' | xargs -0 nixfmt
            cargo fmt
          '';
        }
      );

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ self.packages.${pkgs.stdenv.hostPlatform.system}.blixard ];
          packages = [
            pkgs.clippy
            pkgs.deadnix
            pkgs.nixfmt
            pkgs.rust-analyzer
            pkgs.rustfmt
          ];
        };
      });

      apps = eachSystem (pkgs: {
        demo = {
          type = "app";
          program = lib.getExe (tests pkgs).demo;
          meta.description = "Three hosts as VMs, two replicas of a microVM on them, and the plug pulled on one host";
        };
      });
    };
}
