// Package conformance is Kubernetes' own end-to-end suite, cut down to the tests of an external storage driver: the same
// framework and the same tests as in the e2e.test of a release, without the other two thirds of it.
//
// It has to be a test package, because that is what the suite runs in. `go test -c` makes a program of it that takes the
// flags of e2e.test, and one more: --storage-images.
package conformance

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
	"k8s.io/kubernetes/test/utils/image"

	// What --storage.testdriver defines its tests from.
	_ "k8s.io/kubernetes/test/e2e/storage/external"

	// What says more about a failed test: the events of its namespace, the state of the nodes.
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
)

// The images that these tests run: a name of our own, and what the suite calls it.
var images = []struct {
	name string
	id   image.ImageID
}{
	{"busybox", image.BusyBox},
	{"agnhost", image.Agnhost},
	{"nginx", image.Nginx},
	{"coreutils", image.GlibcDnsTesting}, // only for its dd
}

func TestMain(m *testing.M) {
	list := flag.Bool("storage-images", false, "If true, will show the images that the storage tests run, each behind its short name.")
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unknown arguments: %q\n", flag.Args())
		os.Exit(2)
	}
	if *list {
		for _, i := range images {
			fmt.Println(i.name, image.GetE2EImage(i.id))
		}
		os.Exit(0)
	}
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	os.Exit(m.Run())
}

func TestStorage(t *testing.T) { e2e.RunE2ETests(t) }
