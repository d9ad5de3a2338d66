# The NixOS tests: `checks` has one for every folder beside this one with nodes and a scenario; `demo` is a program.
{
  lib,
  pkgs,
  # services.blixard, with its package
  module,
  # { modules } → a manifest
  mkManifest,
}:
let
  inherit (builtins) pathExists readDir readFile;
  onlyOnTheRig = [
    # Their agents have clocks that are wrong.
    "a_token_lets_one_host_in"
    "expired_certificates_keep_nobody_out"
    # They switch hosts between two builds of the agent.
    "a_rolling_upgrade_stops_no_vm"
    "an_offline_host_blocks_no_upgrade"
    # What runs is seen there, and asked, from outside of the hosts, or hosts are cut off in ways of the rig's.
    "a_host_that_is_cut_off_stops_in_time"
    "a_rolling_reboot_keeps_replicas_up"
    "a_second_copy_is_seen"
    "no_instance_lives_twice"
    # Its units are a host's without NixOS, where they aren't in the store.
    "a_switch_restarts_the_agent_alone"
    # It is the agent, and PID 1 hangs only there.
    "the_fence_needs_nobody"
    # Its clients ask all hosts by their sockets, with one clock, and its misfortunes only the rig can make.
    "what_was_answered_is_linearizable"
  ];
  hasScenario = name: pathExists ../${name}/scenario.py && pathExists ../${name}/nodes.nix;
  claims = lib.subtractLists onlyOnTheRig (
    lib.filter hasScenario (
      lib.attrNames (lib.filterAttrs (_: type: type == "directory") (readDir ../.))
    )
  );
  describe = claim: cluster: import ../${claim}/nodes.nix { inherit cluster; };

  # A manifest's guests are what takes long to evaluate: claims with the same VMs share theirs.
  key =
    {
      vms ? { },
      settings ? { },
      ...
    }:
    builtins.toJSON { inherit vms settings; };
  manifests = lib.genAttrs (lib.unique (map (claim: describe claim key) claims)) (
    declared:
    let
      inherit (builtins.fromJSON declared) vms settings;
    in
    mkManifest {
      modules = [
        {
          services.blixard.vms = import ./declare.nix { inherit lib; } vms;
          services.blixard.cluster = settings;
        }
      ];
    }
  );

  test =
    name: claim: testScript:
    pkgs.testers.runNixOSTest {
      inherit name testScript;
      nodes = describe claim (
        import ./cluster.nix {
          inherit lib;
          carry = declared: { manifestFile = manifests.${key declared}; };
        }
      );
      defaults.imports = [
        module
        ./host.nix
      ];
    };
in
{
  checks = lib.genAttrs claims (
    claim: test claim claim (readFile ../prelude.py + readFile ../${claim}/scenario.py)
  );

  demo =
    let
      demo = test "blixard-demo" "the_leaders_host_powers_off" (
        readFile ../prelude.py + readFile ./demo.py
      );
    in
    pkgs.writeShellApplication {
      name = "blixard-demo";
      text = ''
        case "''${1-}" in
          "") exec ${demo.driver}/bin/nixos-test-driver ;;
          --keep)
            echo "At the prompt: test_script() runs the demo, alpha.execute('blixard status') asks a host, Ctrl-D ends it all."
            exec ${demo.driverInteractive}/bin/nixos-test-driver
            ;;
          *)
            echo "usage: nix run .#demo [-- --keep]" >&2
            exit 2
            ;;
        esac
      '';
    };
}
