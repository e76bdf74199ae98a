/*
 * Takes the annotations of a project that hnscc-qp made without QuPath into the current image.
 *
 * Reads <project folder>/annotations/<entry id> <image name>.geojson, and only into an image that has no
 * annotations yet: afterwards they are QuPath's, to be edited there. Nothing is removed or replaced.
 *
 * How to run it: drop this file on QuPath's window, then Run (the open image) or Run > Run for project
 * (all images). Without the window: QuPath script --project=project.qpproj --save import_annotations.groovy
 * For QuPath 0.4 to 0.7. For research use only, not for diagnosis.
 */
import qupath.lib.io.PathIO
import static qupath.lib.scripting.QP.getCurrentHierarchy
import static qupath.lib.scripting.QP.getProject
import static qupath.lib.scripting.QP.getProjectEntry

def entry = getProjectEntry()
if (entry == null) {
    println 'Open an image of a project first.'
    return
}
def image = entry.getImageName()

def hierarchy = getCurrentHierarchy()
if (!hierarchy.getAnnotationObjects().isEmpty()) {
    println image + ': has annotations already, nothing imported'
    return
}

// The entry's id finds the file: an image may have been renamed in QuPath since.
def folder = getProject().getPath().getParent().resolve('annotations').toFile()
def files = (folder.listFiles() ?: []).findAll {
    it.getName().startsWith(entry.getID() + ' ') && it.getName().endsWith('.geojson')
}
if (files.isEmpty()) {
    println image + ': no annotations in ' + folder + ', nothing imported'
    return
}

def presentIds = hierarchy.getAllObjects(false).collect { it.getID() } as Set
def wanted = PathIO.readObjects(files.max { it.lastModified() }).findAll { !presentIds.contains(it.getID()) }
hierarchy.addObjects(wanted)
println image + ': ' + wanted.size() + ' objects imported'
