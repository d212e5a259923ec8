"""launch/gke.sh: the JobSet that it makes, against the published schemas and by its meaning."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.launch.fakes import LAUNCH, Fakes

GKE = LAUNCH / "gke.sh"
ARGUMENTS = ["--config=configs/x.py", "--workdir=/runs/a b", '--config.name=it\'s "x" \\ & @NAME@']
TRAIN = ["python", "-m", "ffn_alloc.main", *ARGUMENTS]
OPTIONS = ["--name=middle70", "--image=registry/ffn:1", "--claim=runs"]
SLICE = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4"]
ALL = [*OPTIONS, *SLICE, "--", *ARGUMENTS]


@pytest.fixture
def gke(fakes: Fakes) -> Fakes:
    fakes.add("kubectl", 'cat >"$FAKES/manifest"')
    fakes.add("xpk")
    return fakes


@pytest.fixture
def jobset(gke: Fakes) -> dict[str, Any]:
    return create(gke, *ALL)


def create(gke: Fakes, *arguments: str) -> dict[str, Any]:
    """The manifest that kubectl gets."""
    run = gke.run(GKE, *arguments)
    assert run.returncode == 0, run.stderr
    assert gke.calls() == [["kubectl", "create", "-f", "-"]]
    return yaml.safe_load((gke.folder / "manifest").read_text())


def test_the_pods_run_the_verb_on_the_right_nodes_with_every_word_intact(jobset: dict[str, Any]):
    job, pod, container = parts(jobset)
    assert container["command"] == TRAIN
    assert container["image"] == "registry/ffn:1"
    assert job["parallelism"] == job["completions"] == 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]
    assert "cloud.google.com/gke-nodepool" in jobset["metadata"]["annotations"].values()


def test_one_host_several_slices_and_spot(gke: Fakes):
    more = ["--topology=2x4", "--chips-per-host=8", "--slices=3", "--spot"]
    jobset = create(gke, *OPTIONS, *SLICE, *more, "--", *ARGUMENTS)
    job, pod, container = parts(jobset)
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert job["parallelism"] == job["completions"] == 1
    assert container["resources"]["requests"] == {"google.com/tpu": 8}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert jobset["metadata"]["annotations"] == {}


def test_kubernetes_expands_no_variable_in_an_argument(gke: Fakes):
    jobset = create(gke, *ALL, "--config.x=$(FFN_ALLOC_CACHE)")
    assert parts(jobset)[2]["command"][-1] == "--config.x=$$(FFN_ALLOC_CACHE)"


@pytest.mark.parametrize(
    ("code", "evicted", "then"),
    [
        (75, False, "replace the pod"),
        (75, True, "replace the pod"),
        (137, True, "replace the pod"),
        (2, False, "fail"),
        (3, False, "fail"),
        (1, False, "restart all"),
        (137, False, "restart all"),
    ],
)
def test_what_the_cluster_does_when_a_pod_exits(
    jobset: dict[str, Any], code: int, evicted: bool, then: str
):
    assert what_follows(jobset, code, evicted) == then
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 3


def test_every_field_is_one_of_the_published_schemas(gke: Fakes):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api")
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate")
    jobset = create(gke, *OPTIONS, *SLICE, "--spot", "--", *ARGUMENTS)
    # The models drop what they do not know.
    read = models.JobsetV1alpha2JobSet.from_dict(jobset)
    assert list(differences(jobset, read.to_dict())) == []
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    kubernetes.validate({**job, "spec": spec}, "1.31", strict=True)


def test_the_jobset_part_has_only_fields_of_the_custom_resource(jobset: dict[str, Any]):
    # From config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml and pkg/webhooks of
    # kubernetes-sigs/jobset, commit 01078527.
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    spec = jobset["spec"]
    assert set(spec) <= {"failurePolicy", "replicatedJobs", "network", "ttlSecondsAfterFinished"}
    assert set(spec["failurePolicy"]) <= {"maxRestarts", "restartStrategy", "rules"}
    for rule in spec["failurePolicy"]["rules"]:
        assert set(rule) <= {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"}
        assert rule["action"] in {"FailJobSet", "RestartJobSet"} and rule["name"].isidentifier()
        assert set(rule["onJobFailureReasons"]) <= {"BackoffLimitExceeded", "PodFailurePolicy"}
    for job in spec["replicatedJobs"]:
        assert set(job) <= {"name", "replicas", "template", "dependsOn", "groupName"}


def test_through_xpk(gke: Fakes):
    through = ["--xpk=cluster", "--tpu-type=v5litepod-8", "--spot"]
    gke.run(GKE, *OPTIONS, *through, "--", *ARGUMENTS)
    [[xpk, *words]] = gke.calls()
    assert [xpk, *words[:2]] == ["xpk", "workload", "create"]
    assert {"--cluster=cluster", "--workload=middle70", "--tpu-type=v5litepod-8", "--spot"} <= set(
        words
    )
    assert "--restart-on-exit-codes=1,75" in words  # and of its own 127 to 255, not 2
    [command] = [word[10:] for word in words if word.startswith("--command=")]
    gke.add("python")  # XPK writes the command into a script for bash
    (gke.folder / "wrapper.sh").write_text(command)
    gke.run(gke.folder / "wrapper.sh")
    assert gke.calls("python") == [TRAIN]


@pytest.mark.parametrize("through", [SLICE, ["--xpk=cluster", "--tpu-type=v5litepod-8"]])
def test_a_dry_run_prints_what_would_be_run_and_runs_nothing(gke: Fakes, through: list[str]):
    printed = gke.run(GKE, *OPTIONS, *through, "--dry-run", "--", *ARGUMENTS)
    assert printed.returncode == 0 and gke.calls() == []
    (gke.folder / "again.sh").write_text(printed.stdout)
    gke.run(gke.folder / "again.sh")
    again = gke.calls()
    gke.add("kubectl", 'cat >"$FAKES/real"')
    gke.run(GKE, *OPTIONS, *through, "--", *ARGUMENTS)
    assert gke.calls() == again * 2
    if through == SLICE:
        read = [yaml.safe_load((gke.folder / name).read_text()) for name in ("manifest", "real")]
        assert read[0] == read[1] and read[0]["kind"] == "JobSet"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*OPTIONS[1:], *SLICE, "--", *ARGUMENTS], "--name"),
        ([*OPTIONS[:2], *SLICE, "--", *ARGUMENTS], "--claim"),
        ([*OPTIONS, SLICE[0], "--", *ARGUMENTS], "--topology"),
        ([*OPTIONS, "--xpk=cluster", "--", *ARGUMENTS], "--tpu-type"),
        ([*OPTIONS, *SLICE, "--topology=4x", "--", *ARGUMENTS], "--topology=4x"),
        ([*OPTIONS, *SLICE, "--topology=08x4", "--", *ARGUMENTS], "--topology=08x4"),
        ([*OPTIONS, *SLICE, "--topology=0x4", "--", *ARGUMENTS], "--topology=0x4"),
        ([*OPTIONS, *SLICE, "--chips-per-host=0", "--", *ARGUMENTS], "--chips-per-host=0"),
        ([*OPTIONS, *SLICE, "--slices=two", "--", *ARGUMENTS], "--slices=two"),
        ([*OPTIONS, *SLICE, "--topology=3x3", "--", *ARGUMENTS], "9 chips"),
        ([*OPTIONS, *SLICE, "--sice=2", "--", *ARGUMENTS], "--sice=2"),
        ([*OPTIONS, *SLICE, "--", ARGUMENTS[0]], "--workdir=/runs/"),
        ([*OPTIONS, *SLICE, "--", ARGUMENTS[0], "--workdir=/tmp/x"], "--workdir=/runs/"),
        ([*OPTIONS, *SLICE, *ARGUMENTS], "unknown option --config=configs/x.py"),
    ],
)
def test_bad_input_is_named_before_anything_is_created(
    gke: Fakes, arguments: list[str], named: str
):
    run = gke.run(GKE, *arguments)
    assert run.returncode == 2 and named in run.stderr and gke.calls() == []


def test_a_workdir_may_lie_in_a_bucket(gke: Fakes):
    bucket = ["--", ARGUMENTS[0], "--workdir=gs://b/runs/x"]
    printed = gke.run(GKE, "--dry-run", *OPTIONS, *SLICE, *bucket)
    assert printed.returncode == 0 and "gs://b/runs/x" in printed.stdout


def test_kubectl_s_own_message_and_code_are_kept(gke: Fakes):
    gke.add("kubectl", "echo 'error: You must be logged in to the server' >&2; exit 1")
    run = gke.run(GKE, *ALL)
    assert run.returncode == 1 and "You must be logged in" in run.stderr
    assert "follow it" not in run.stdout


def parts(jobset: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The job's spec, the pod's, and the container."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    return job, pod, pod["containers"][0]


def what_follows(jobset: dict[str, Any], code: int, evicted: bool) -> str:
    """Kubernetes' rules ("Pod failure policy", "Failure Policy" of JobSet) for a failed pod."""
    job, pod, container = parts(jobset)
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        assert (codes is None) != (conditions is None)
        if codes and (codes["containerName"], codes["operator"]) != (container["name"], "In"):
            continue
        if codes and code not in codes["values"]:
            continue
        if conditions and not (evicted and conditions[0]["type"] == "DisruptionTarget"):
            continue
        if rule["action"] == "Ignore":
            return "replace the pod"
        reason = {"FailJob": "PodFailurePolicy"}[rule["action"]]
        break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return {"FailJobSet": "fail", "RestartJobSet": "restart all"}[rule["action"]]
    return "restart all"


def differences(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Paths in `written` that `read` lacks or holds otherwise."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from differences(value, read.get(key), f"{path}/{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from differences(one, other, f"{path}/{index}")
    elif written != read:
        yield path
